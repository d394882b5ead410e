"""SyncPolicyClient: how a program with threads asks policyd.

    with SyncPolicyClient("127.0.0.1:50051", on_error="deny") as policyd:
        answer = policyd.evaluate(EvaluateRequest(key=key, has_user=False))

evaluate() blocks, and all threads ask through one PolicyClient.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from ssl import SSLContext
from typing import Any, TypeVar

from grpc import ChannelCredentials

from policyd.client import forking
from policyd.client.aio import PolicyClient
from policyd.client.batches import CLOSED
from policyd.client.fallback import OnError, instead
from policyd.client.targets import Targets
from policyd.command.serving_settings import POLICY_TIMEOUT
from policyd.errors import NoDecision
from policyd.v1.policy_pb2 import (
    CheckKeyRequest,
    CheckKeyResponse,
    EvaluateRequest,
    EvaluateResponse,
    Outcome,
)

_Answer = TypeVar("_Answer", EvaluateResponse, CheckKeyResponse)
_MARGIN = 1.0
"""Seconds beyond the timeout after which the client's own thread is given up."""
_CLOSING_TIME = 5.0
"""Seconds that the end of the thread may take."""


class SyncPolicyClient(AbstractContextManager["SyncPolicyClient"]):
    """PolicyClient for threads: evaluate() blocks, and never much longer than `timeout`.

    The arguments are those of PolicyClient. One event loop, in a thread of its own, asks for all
    threads, so evaluations of several threads travel together. That thread and its connections are
    made at the first call.

    A process with such a client may fork: os.fork() waits for the calls under way, at most for
    their timeout. Then parent and child each make connections of their own at their next call. This
    needs the hooks of os.fork(), which gunicorn, Celery and multiprocessing run, and no other part
    of the process may use gRPC's asyncio. Where the child cannot ask, `on_error` applies, and
    "allow" denies.
    """

    def __init__(
        self,
        target: Targets,
        *,
        timeout: float = POLICY_TIMEOUT,
        credentials: ChannelCredentials | SSLContext | None = None,
        token: str = "",
        on_error: OnError = "raise",
    ) -> None:
        def new_client() -> PolicyClient:
            return PolicyClient(target, timeout=timeout, credentials=credentials, token=token)

        new_client()  # Wrong arguments raise here, and not at the first call.
        self._new_client = new_client
        self._patience = timeout + _MARGIN
        self._on_error = on_error
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._outcomes: list[Outcome] = []
        """Outcomes that the last connection had not sent before a fork."""
        self._closed = False
        forking.clients.add(self)

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if connection := getattr(self, "_connection", None):
            connection.leave()

    def close(self) -> None:
        """Close the connections. Evaluations under way end without a decision."""
        with suppress(NoDecision), self._turn():
            if self._outcomes:
                self._connected()
            self._closed = True
            connection, self._connection = self._connection, None
            if connection:
                connection.close()

    def evaluate(self, request: EvaluateRequest) -> EvaluateResponse:
        """Ask for the decision on a request. If none comes in time, for any cause, `on_error`
        applies."""
        try:
            # The lock is held only to hand it over: close() ends what was handed over before.
            with self._turn():
                asked = self._connected().evaluate(request)
            return _answer(asked, self._patience)
        except NoDecision as problem:
            return instead(problem, self._on_error)

    def check_key(self, request: CheckKeyRequest) -> CheckKeyResponse:
        """Ask about a key before a body is read, as PolicyClient.check_key() does."""
        with self._turn():
            asked = self._connected().check_key(request)
        return _answer(asked, self._patience)

    def report(self, outcome: Outcome) -> None:
        """Report the outcome of a request that was allowed, as PolicyClient.report() does."""
        with suppress(NoDecision), self._turn():
            self._connected().report(outcome)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the lock. Raises NoDecision where the client is closed, or the lock is not free."""
        lock = self._lock
        if not lock.acquire(timeout=self._patience):
            raise NoDecision("another thread is forking or closing the client", is_outage=True)
        try:
            if self._closed:
                raise NoDecision(CLOSED)
            yield
        finally:
            lock.release()

    def _connected(self) -> "_Connection":
        if self._connection is None:
            forking.check()
            self._connection = _Connection(self._new_client())
            for outcome in self._outcomes:
                self._connection.report(outcome)
            self._outcomes = []
        return self._connection

    def suspend(self) -> bool:
        """Called before a fork: see forking.py."""
        if not self._lock.acquire(timeout=self._patience):
            return False
        try:
            if connection := self._connection:
                self._connection = None
                self._outcomes = connection.suspend(self._patience)
        except BaseException:  # A signal's handler may raise while it waits.
            self._lock.release()
            raise
        return True

    def resume(self) -> None:
        """Called in the parent, after a fork."""
        self._lock.release()

    def renew(self) -> None:
        """Called in the child, after a fork. The parent reports the outcomes that wait."""
        self._lock = threading.Lock()
        self._outcomes = []
        if self._connection is not None:
            # It is kept, not deleted: its parts would wait for threads that only the parent has.
            _left_behind.append(self._connection)
            self._connection = None


class _Connection:
    """A PolicyClient on an event loop in a thread of its own."""

    def __init__(self, client: PolicyClient) -> None:
        self._client = client
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._kept: list[Outcome] | None = None
        """Outcomes that were not sent; None where they need not be kept."""
        self._under_way: set[Future[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="policyd client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._stop.wait()
        if self._kept is not None:
            self._kept += self._client.take_outcomes()
        await self._client.close()

    def evaluate(self, request: EvaluateRequest) -> "Future[EvaluateResponse]":
        return self._begin(self._client.evaluate(request))

    def check_key(self, request: CheckKeyRequest) -> "Future[CheckKeyResponse]":
        return self._begin(self._client.check_key(request))

    def _begin(self, asking: Coroutine[Any, Any, _Answer]) -> "Future[_Answer]":
        asked = asyncio.run_coroutine_threadsafe(asking, self._loop)
        self._under_way.add(asked)
        asked.add_done_callback(self._under_way.discard)
        return asked

    def report(self, outcome: Outcome) -> None:
        self._loop.call_soon_threadsafe(self._client.report, outcome)

    def leave(self) -> None:
        """Let the thread end, without waiting for that."""
        with suppress(RuntimeError):  # It has ended.
            self._loop.call_soon_threadsafe(self._stop.set)

    def close(self) -> None:
        self.leave()
        self._thread.join(_CLOSING_TIME)

    def suspend(self, patience: float) -> list[Outcome]:
        """Close it once it has its answers. Returns the outcomes that were not sent."""
        wait(tuple(self._under_way), patience)
        self._kept = []
        self.close()
        return self._kept


_left_behind: list[_Connection] = []
"""Connections of the parent process that it could not close before the fork."""


def _answer(asked: "Future[_Answer]", patience: float) -> _Answer:
    """The answer to a call, waited for no longer than `patience`: the call has a deadline, but the
    thread that keeps it may be gone."""
    try:
        return asked.result(patience)
    except CancelledError:
        raise NoDecision(CLOSED) from None
    except TimeoutError:
        asked.cancel()
        raise NoDecision("the client's own thread gave no answer", is_outage=True) from None
