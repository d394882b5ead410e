"""A bound on the calls that wait: those whose message has not come yet, and those that stream.

gRPC bounds all calls of a server together. But a client needs neither a token nor a message to
begin a call, and a stream lasts as long as the client likes; so a client that only holds calls
could take the place of all others. Half of gRPC's bound is therefore the most that may wait at
once, and beyond it the call that has waited longest is ended for the new one.

Services whose streams last by their nature are counted apart: no other call ends such a stream, and
it ends none. They need a token before a stream begins, and have a bound of their own.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

_Handler = Any
"""A grpc.RpcMethodHandler, which is generic for the type checker only."""
_Answer = Callable[[Any, Any], Awaitable[Any]]
_FULL = "too many calls stream or wait for their message, and this one has lasted longest"
_STOPPING = "policyd is being stopped"
_NO_MESSAGE = "the call brings no message"


class _MakesRoom(Exception):
    """The call has to end, so that another one can wait, or because the server stops."""


class WaitingCalls(grpc.aio.ServerInterceptor):
    """Lets at most `most` calls wait at once, beside the streams of the services `lasting`. It has
    to be the first interceptor, so that it sees calls that a later one rejects, too."""

    def __init__(self, most: int, lasting: Iterable[str] = ()) -> None:
        self._most = most
        self._lasting = tuple(f"/{service}/" for service in lasting)
        self._streams: set[asyncio.Task[Any]] = set()
        self._calls: OrderedDict[asyncio.Task[Any], None] = OrderedDict()
        self._is_stopping = False
        # A method's handler is the same at every call, so it is wrapped once.
        self._wrapped: dict[_Handler, _Handler] = {}

    def end_all(self) -> None:
        """End all calls that wait, because the server stops."""
        self._is_stopping = True
        while self._calls:
            self._calls.popitem(last=False)[0].cancel()
        while self._streams:
            self._streams.pop().cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED.
        if handler not in self._wrapped:
            is_lasting = handler_call_details.method.startswith(self._lasting)
            self._wrapped[handler] = (self._wrap_lasting if is_lasting else self._wrap)(handler)
        return self._wrapped[handler]

    def _wrap(self, handler: _Handler) -> _Handler:
        if handler.stream_unary is not None:
            return handler  # An error of a later interceptor, which waits for nothing.
        # A handler of streams is called before the message is here.
        make: Any = grpc.stream_stream_rpc_method_handler
        answer = self._streaming(handler)
        if handler.unary_unary is not None:
            make = grpc.stream_unary_rpc_method_handler
            answer = self._unary(handler.unary_unary)
        return make(answer, handler.request_deserializer, handler.response_serializer)

    def _unary(self, answer: _Answer) -> _Answer:
        async def answer_message(_: Any, context: Any) -> Any:
            try:
                with self._held():
                    message = await _message(context)
            except _MakesRoom:
                await self._reject(context)
            return await answer(message, context)

        return answer_message

    def _streaming(self, handler: _Handler) -> _Answer:
        async def answer_stream(messages: Any, context: Any) -> None:
            try:
                with self._held():
                    if handler.unary_stream is not None:
                        await handler.unary_stream(await _message(context), context)
                        return
                    async for answer in handler.stream_stream(messages, context):
                        await context.write(answer)
            except _MakesRoom:
                await self._reject(context)

        return answer_stream

    def _wrap_lasting(self, handler: _Handler) -> _Handler:
        # A handler without streams in both directions is a later interceptor's.
        if handler.stream_stream is None:
            return self._wrap(handler)
        make: Any = grpc.stream_stream_rpc_method_handler

        async def answer_stream(messages: Any, context: Any) -> None:
            try:
                with self._held_apart():
                    await handler.stream_stream(messages, context)
            except _MakesRoom:
                await self._reject(context)

        return make(answer_stream, handler.request_deserializer, handler.response_serializer)

    async def _reject(self, context: Any) -> None:
        if self._is_stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, _STOPPING)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, _FULL)

    @contextmanager
    def _held_apart(self) -> Iterator[None]:
        """Note that the running task's call lasts. Raises _MakesRoom if it has to end."""
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task in self._streams or not self._is_stopping:
                raise  # The client has gone, or the server stops.
            task.uncancel()
            raise _MakesRoom from None
        finally:
            self._streams.discard(task)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Note that the running task's call waits. Raises _MakesRoom if it has to end."""
        task = asyncio.current_task()
        assert task is not None
        if len(self._calls) >= self._most:
            self._calls.popitem(last=False)[0].cancel()
        self._calls[task] = None
        try:
            yield
        except asyncio.CancelledError:
            if task in self._calls:
                raise  # The client has gone, or the server stops.
            task.uncancel()
            raise _MakesRoom from None
        finally:
            self._calls.pop(task, None)


async def _message(context: Any) -> Any:
    message = await context.read()
    if message is grpc.aio.EOF:
        await context.abort(grpc.StatusCode.INTERNAL, _NO_MESSAGE)
    return message
