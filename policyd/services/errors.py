"""policyd's errors as gRPC statuses: one table, and one interceptor that uses it.

An error is no decision: a denial is a value in a response with status OK. So any other status means
that policyd did not decide, and google.rpc.ErrorInfo tells a program why.
"""

from __future__ import annotations  # gRPC's classes are generic for the type checker only.

import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from policyd import errors

_log = logging.getLogger(__name__)

DOMAIN = "policyd"
_Code = grpc.StatusCode
_CODES: dict[type[errors.PolicydError], grpc.StatusCode] = {
    errors.InvalidDescriptor: _Code.INVALID_ARGUMENT,
    errors.InvalidArgument: _Code.INVALID_ARGUMENT,
    errors.RevisionNotReached: _Code.FAILED_PRECONDITION,
    errors.Unauthenticated: _Code.UNAUTHENTICATED,
    errors.KeyNotFound: _Code.NOT_FOUND,
    errors.DecisionNotFound: _Code.NOT_FOUND,
    errors.LogFull: _Code.RESOURCE_EXHAUSTED,
    errors.LogUnwritable: _Code.RESOURCE_EXHAUSTED,
    errors.BodiesFull: _Code.RESOURCE_EXHAUSTED,
    errors.KeyRevoked: _Code.FAILED_PRECONDITION,
    errors.NameTaken: _Code.ALREADY_EXISTS,
    errors.OlderServers: _Code.FAILED_PRECONDITION,
    errors.EtagMismatch: _Code.ABORTED,
    errors.PositionMoved: _Code.ABORTED,
    errors.TooManyGateways: _Code.RESOURCE_EXHAUSTED,
    errors.GatewayTooSlow: _Code.RESOURCE_EXHAUSTED,
    errors.StoreBusy: _Code.RESOURCE_EXHAUSTED,
    errors.StoreUnavailable: _Code.UNAVAILABLE,
    errors.WrongDatabase: _Code.UNAVAILABLE,
    errors.StoreUnusable: _Code.UNAVAILABLE,
    errors.SettingsUnknown: _Code.UNAVAILABLE,
}
TABLE = {kind: (code, errors.REASON_OF[kind]) for kind, code in _CODES.items()}
"""Each error's status code, and the reason in its ErrorInfo."""

Note = Callable[[Exception], None]
"""Called with each error that a caller gets in place of an answer."""

_Continuation = Callable[
    [grpc.HandlerCallDetails], Awaitable["grpc.RpcMethodHandler[Any, Any] | None"]
]


def unnoted(_: Exception) -> None:
    """A Note that does nothing."""


def status_of(error: Exception) -> tuple[grpc.StatusCode, str, str]:
    """The status code, the message and the reason with which `error` is reported."""
    if type(error) in TABLE:
        code, reason = TABLE[type(error)]  # type: ignore[index]  # checked in the line above
        return code, str(error), reason
    # Its text may contain anything, a secret too, so only the log has it.
    _log.error("an unexpected error", exc_info=error)
    return _Code.INTERNAL, "policyd failed; its log says more", errors.INTERNAL


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> NoReturn:
    """End an RPC with the status for `error`, an ErrorInfo in its details."""
    code, message, reason = status_of(error)
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    status = status_pb2.Status(code=code.value[0], message=message, details=[info])
    details = ("grpc-status-details-bin", status.SerializeToString())
    await context.abort(code, message, (details,))


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Reports the errors that servicers raise, to callers and to `note`. Streams (health,
    reflection) report their own."""

    def __init__(self, note: Note) -> None:
        self._note = note
        # A handler is the same at every call, so it is wrapped once.
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: _Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """See grpc.aio.ServerInterceptor."""
        method = handler_call_details.method
        if method in self._wrapped:
            return self._wrapped[method]
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler  # type: ignore[return-value]  # None: gRPC answers UNIMPLEMENTED
        self._wrapped[method] = _reporting(handler, self._note)
        return self._wrapped[method]


def _reporting(
    handler: grpc.RpcMethodHandler[Any, Any], note: Note
) -> grpc.RpcMethodHandler[Any, Any]:
    answer: Any = handler.unary_unary
    parse: Any = handler.request_deserializer

    async def answer_or_abort(data: bytes, context: Any) -> Any:
        try:
            return await answer(_parsed(parse, data), context)
        except grpc.aio.AbortError:
            raise  # The servicer has ended the call itself.
        except NotImplementedError:
            await context.abort(_Code.UNIMPLEMENTED, "this policyd does not have the method")
        except Exception as error:  # noqa: BLE001  # abort() logs unexpected errors.
            note(error)
            await abort(context, error)

    return grpc.unary_unary_rpc_method_handler(
        answer_or_abort, response_serializer=handler.response_serializer
    )


def _parsed(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError:
        raise errors.InvalidArgument("the request is not a message of this method") from None
