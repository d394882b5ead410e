"""The HTTP check of one worker: its listener, and what the check needs of the rest of the worker.

Only a policyd with --http loads it, and the modules of an HTTP server.
"""

import socket
from collections.abc import Callable
from functools import partial

from policyd.asgi.limits import Limits
from policyd.asgi.listener import Listener
from policyd.asgi.tls import tls_context
from policyd.command.address import Address, check_free, listen
from policyd.command.worker_clock import WorkerClock
from policyd.decider import Decider
from policyd.descriptor.body_memory import Bodies
from policyd.http.app import HttpCheck
from policyd.http.connect import Connect, Method, Problem
from policyd.keys import tokens
from policyd.keys.defaults import Defaults
from policyd.server.following import Following
from policyd.server.readiness import Readiness
from policyd.services.errors import status_of
from policyd.services.policy import PolicyServicer
from policyd.settings import ServerSettings
from policyd.v1 import policy_pb2 as pb

_ENDING = "policyd is being stopped"


class HttpServer:
    """Answers at --http until it is stopped. The constructor raises SettingsError."""

    def __init__(
        self,
        settings: ServerSettings,
        limits: Limits,
        decider: Decider,
        bodies: Bodies,
        following: Following,
        readiness: Readiness,
        clock: WorkerClock,
        note: Callable[[Exception], None],
        defaults: Defaults,
    ) -> None:
        """`note` gets each error that a caller gets in place of a decision."""
        self._following = following
        self._readiness = readiness
        path = settings.caller_token_file
        self._app = HttpCheck(
            decider.answer,
            decider.knows,
            bodies,
            token=tokens.load(path, "--caller-token-file") if path else "",
            end_user_headers=partial(defaults.trusted, "http"),
            max_body=settings.max_body,
            max_message=settings.max_message,
            patience=settings.body_timeout,
            not_ready=self._not_ready,
            remark=clock.remark,
            warnings=lambda: readiness.warnings,
            is_stale=self._is_stale,
            is_undecided=self._is_undecided,
            note=note,
            connect=_connect(decider, partial(defaults.trusted, "http")),
        )
        tls = tls_context(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        self._listener = Listener(self._app, tls=tls, grace=settings.grace, limits=limits)

    async def start(self, address: Address, shared: socket.socket | None) -> Address:
        """Listen at `address`, on the `shared` socket where several workers have one. Returns the
        address with its port. Raises CannotListen."""
        listening = shared
        if listening is None:
            check_free(address, "--http")
            listening = listen(address, "--http")
        port = listening.getsockname()[1]
        await self._listener.start(listening, shared=shared is not None)
        return Address(address.host, port)

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return self._listener.connections

    def wind_down(self) -> None:
        """Have each client leave with its next request."""
        self._listener.wind_down()

    def drain(self) -> None:
        """Report from now on that this worker is not ready."""
        self._app.end(_ENDING)

    def hurry(self) -> None:
        """Stop waiting for requests under way."""
        self._listener.hurry()

    async def stop(self) -> None:
        """Take no new requests, and wait for those under way up to the grace period."""
        await self._listener.stop()

    async def _not_ready(self) -> str:
        return self._readiness.unready

    async def _is_stale(self) -> str:
        return self._following.stale

    async def _is_undecided(self) -> str:
        return self._readiness.undecided


def _connect(decider: Decider, trusted: Callable[[], frozenset[str]]) -> Connect:
    """PolicyService, as over gRPC."""
    service = PolicyServicer(decider, trusted, "http")
    name = pb.DESCRIPTOR.services_by_name["PolicyService"].full_name
    methods = {
        "Evaluate": Method(pb.EvaluateRequest, service.Evaluate),
        "BatchEvaluate": Method(pb.BatchEvaluateRequest, service.BatchEvaluate),
        "CheckKey": Method(pb.CheckKeyRequest, service.CheckKey),
        "ReportOutcome": Method(pb.ReportOutcomeRequest, service.ReportOutcome),
    }
    return Connect({f"/{name}/{one}": method for one, method in methods.items()}, _problem)


def _problem(error: Exception) -> Problem:
    code, message, reason = status_of(error)
    return Problem(code.name.lower(), message, reason)
