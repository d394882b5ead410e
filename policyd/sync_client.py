"""policyd.client for programs of threads: evaluate() blocks.

with SyncPolicyClient("127.0.0.1:50051", on_error="deny") as policyd:
    answer = policyd.evaluate(EvaluateRequest(key=key, has_user=False))
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Self

from policyd.client import CLOSED, ChannelCredentials, NoDecision, OnError, PolicyClient, instead
from policyd.v1.policy_pb2 import (
    CheckKeyRequest,
    CheckKeyResponse,
    EvaluateRequest,
    EvaluateResponse,
    Outcome,
)


class SyncPolicyClient:
    """PolicyClient for threads: evaluate() blocks. What several threads ask at once travels
    together, as one event loop in a thread of its own asks for all of them.

    A process that forks makes it afterwards: neither that thread nor gRPC survives a fork.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = 1.0,
        credentials: ChannelCredentials | None = None,
        token: str = "",
        on_error: OnError = "raise",
    ) -> None:
        def connect() -> PolicyClient:
            return PolicyClient(
                target, timeout=timeout, credentials=credentials, token=token, on_error=on_error
            )

        self._on_error = on_error
        self._lock = threading.Lock()
        self._closed = False
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(connect, ready)), daemon=True
        )
        self._thread.start()
        ready.result()

    async def _serve(self, connect: Callable[[], PolicyClient], ready: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            self._client = connect()
        except Exception as problem:  # noqa: BLE001  # The constructor raises it.
            ready.set_exception(problem)
            return
        ready.set_result(None)
        async with self._client:
            await self._stop.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel. Questions under way end with no decision."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def evaluate(self, request: EvaluateRequest) -> EvaluateResponse:
        """Ask for a decision. Where none comes in time, for whatever cause, `on_error` holds."""
        # Whatever is handed over before close() is ended by it, and nothing is handed over after.
        with self._lock:
            if self._closed:
                return instead(NoDecision(CLOSED), self._on_error)
            asked = asyncio.run_coroutine_threadsafe(self._client.evaluate(request), self._loop)
        try:
            return asked.result()
        except CancelledError:
            return instead(NoDecision(CLOSED), self._on_error)

    def check_key(self, request: CheckKeyRequest) -> CheckKeyResponse:
        """Ask about a key before a body is held, as PolicyClient.check_key() does."""
        with self._lock:
            if self._closed:
                raise NoDecision(CLOSED)
            asked = asyncio.run_coroutine_threadsafe(self._client.check_key(request), self._loop)
        try:
            return asked.result()
        except CancelledError:
            raise NoDecision(CLOSED) from None

    def report(self, outcome: Outcome) -> None:
        """Report what became of a request that was allowed, as PolicyClient.report() does."""
        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(self._client.report, outcome)
