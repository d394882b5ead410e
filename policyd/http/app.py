"""The ASGI app behind --http: the check, the descriptor in JSON, AuthZEN, and PolicyService."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
from google.protobuf import json_format

from policyd import errors
from policyd.asgi.body import ClientGone, Receive
from policyd.asgi.probes import Check, Probes
from policyd.asgi.reply import AGAIN, NO_ROOM, TOO_SLOW, WEBSOCKET, Reply, Send, error
from policyd.descriptor.body_memory import Bodies
from policyd.descriptor.headers import is_coded, wants_websocket
from policyd.engine.decision import NO_ROUTE
from policyd.engine.settings import RouteSettings
from policyd.errors import BodiesFull, InvalidArgument, PolicydError, Unauthenticated
from policyd.http import authzen, check
from policyd.http.connect import Connect, Problem
from policyd.http.connect import error as connect_error
from policyd.http.request import Request
from policyd.v1.policy_pb2 import CheckKeyRequest, EvaluateRequest, EvaluateResponse

_log = logging.getLogger(__name__)

EVALUATE = "/v1/evaluate"
_THROWN_AWAY = 64 * 2**20
"""Bytes of an unneeded body that are read, at least, before its client is cut off."""
_HOST = re.compile(r"[0-9A-Za-z._~:\[\]-]{1,300}")
# All other errors get 503, as they may pass soon.
_STATUS = {
    errors.InvalidArgument: 400,
    errors.InvalidDescriptor: 400,
    errors.Unauthenticated: 401,
}
_TYPES = {400: "invalid_request", 401: "access_denied"}
_STOPPING = error(503, "server_error", "policyd is being stopped. Try again", retry_after=AGAIN)
# Neither is `unavailable`: policyd was reached, so its caller must not take it for an outage.
_STOPPING_CALL = connect_error(Problem("canceled", "policyd is being stopped. Try again", ""))
_NO_ROOM_CALL = connect_error(
    Problem("resource_exhausted", "there are as many connections as --max-connections allows", "")
)
_FAULT = error(500, "server_error", "policyd failed on this check. Its log says how")
_NOT_FOUND = error(
    404,
    "invalid_request",
    f"There is nothing here. Ask {check.PATH}, {EVALUATE}, {authzen.EVALUATION} or "
    f"{authzen.EVALUATIONS}",
)
_TOO_LARGE = error(
    413,
    "invalid_request",
    "The descriptor is too large. Send a smaller one, or have policyd's operator raise "
    "--max-message",
)
_TOO_LARGE_CALL = connect_error(
    Problem("resource_exhausted", "the message is too large: see --max-message", "")
)


class Answer(Protocol):
    """Decides: PolicyServicer.answer(), as this app calls it."""

    def __call__(
        self,
        request: EvaluateRequest,
        route: RouteSettings,
        trusted: frozenset[str],
        *,
        adapter: str,
    ) -> Awaitable[EvaluateResponse]:
        """The decision on `request`, which is counted by `adapter`. Its headers in `trusted` may
        name the end user."""


class HttpCheck:
    """The ASGI app. `answer` decides; callers must show `token` where there is one. Of the headers
    that callers send, those in `end_user_headers` may name the end user.

    Up to `max_body` bytes of a body that a proxy sends along are read, if `knows` finds the key in
    force, and up to `max_message` of a descriptor or evaluation; either has `patience` seconds to
    arrive. `not_ready` gives the reason why a balancer should send no checks here, `is_stale` why
    the settings may be old ones, `is_undecided` why requests get no decision, and `remark` and
    `warnings` what its operator should know all the same. `note` gets each error that a caller
    gets in place of a decision. `connect` answers the calls of PolicyService.
    """

    def __init__(
        self,
        answer: Answer,
        knows: Callable[[CheckKeyRequest], bool],
        bodies: Bodies,
        *,
        token: str,
        end_user_headers: Callable[[], frozenset[str]],
        max_body: int,
        max_message: int,
        patience: float,
        not_ready: Check,
        remark: Callable[[], str],
        warnings: Callable[[], list[str]],
        is_stale: Check,
        is_undecided: Check,
        note: Callable[[Exception], None],
        connect: Connect,
    ) -> None:
        self._note = note
        self._connect = connect
        self._answer = answer
        self._knows = knows
        self._bodies = bodies
        self._patience = patience
        self._probes = Probes(not_ready, remark, is_stale, warnings, is_undecided)
        self._token = token
        self._end_user_headers = end_user_headers
        self._max_body = max_body
        self._max_message = max_message

    def end(self, reason: str) -> None:
        """Report from now on that policyd is not ready, for this reason."""
        self._probes.end(reason)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        request = Request(scope, receive, self._patience)
        try:
            reply = await self._reply(request)
            await request.drain(max(self._max_body, _THROWN_AWAY))
        except TimeoutError:
            reply = TOO_SLOW
        except ClientGone:
            return
        except asyncio.CancelledError:
            # policyd is stopping, and its grace is over.
            reply = _STOPPING_CALL if self._connect.has(request.path) else _STOPPING
        except Exception:  # noqa: BLE001  # Whatever it was, nothing is allowed.
            _log.exception(
                "a fault of policyd; a check was not answered",
                extra={"method": request.method, "path": request.path},
            )
            reply = _FAULT
        await reply.send(send)

    async def _reply(self, request: Request) -> Reply:
        if probed := await self._probes.answer(request.method, request.path):
            return Reply(*probed)
        if request.is_spare:
            return _NO_ROOM_CALL if self._connect.has(request.path) else NO_ROOM
        if self._connect.has(request.path):
            return await self._call(request)
        endpoint = request.path.removesuffix("/")
        if endpoint in (authzen.EVALUATION, authzen.EVALUATIONS, authzen.CONFIGURATION):
            reply = await self._authzen(request, endpoint)
            identifier = request.one("x-request-id")
            return reply.with_headers([("X-Request-ID", identifier)]) if identifier else reply
        try:
            if check.is_check(request.path):
                return await self._check(request)
            if endpoint == EVALUATE:
                return await self._evaluate(request)
        except PolicydError as problem:
            self._note(problem)
            return _problem(problem)
        return _NOT_FOUND

    async def _check(self, request: Request) -> Reply:
        # The header Authorization is the client's, for the upstream.
        self._authenticate(request, bearer=False)
        if wants_websocket(request.headers):
            return WEBSOCKET
        trusted = self._end_user_headers()
        described, unread = await check.described(
            request, self._max_body, self._bodies, self._knows, trusted
        )
        answer = await self._answer(described, check.route(request.path), trusted, adapter="http")
        return check.reply(answer, unread, b"{}")

    async def _evaluate(self, request: Request) -> Reply:
        self._authenticate(request, bearer=True)
        with self._bodies.hold() as held:
            body = await request.body(self._max_message, held)
            if body is None:
                return _TOO_LARGE
            response = await self._answer(
                _descriptor(request, body.whole()),
                NO_ROUTE,
                self._end_user_headers(),
                adapter="http",
            )
        shown = json_format.MessageToJson(response, indent=None, ensure_ascii=False)
        return check.reply(response, None, shown.encode())

    async def _call(self, request: Request) -> Reply:
        if rejected := self._connect.rejects(request):
            return rejected
        try:
            self._authenticate(request, bearer=True)
            with self._bodies.hold() as held:
                body = await request.body(self._max_message, held)
                if body is None:
                    return _TOO_LARGE_CALL
                return await self._connect.answer(request, body.whole())
        except Exception as problem:
            if isinstance(problem, ClientGone | TimeoutError):
                raise
            self._note(problem)
            return self._connect.failed(problem)

    async def _authzen(self, request: Request, endpoint: str) -> Reply:
        if endpoint == authzen.CONFIGURATION:
            return _configuration(request)
        if request.method != "POST":
            return _text(405, "send a POST request", (("Allow", "POST"),))
        decide = authzen.evaluation if endpoint == authzen.EVALUATION else authzen.evaluations
        try:
            self._authenticate(request, bearer=True)
            if request.one("content-type").partition(";")[0].strip().lower() != "application/json":
                raise InvalidArgument("send JSON, with the Content-Type application/json")
            if is_coded(request.all("content-encoding")):
                raise InvalidArgument("send the JSON uncompressed, without a Content-Encoding")
            with self._bodies.hold() as held:
                body = await request.body(self._max_message, held)
                if body is None:
                    return _text(413, "send a smaller request, or raise --max-message")
                return _json(await decide(body.whole(), self._decide))
        except (BodiesFull, Unauthenticated, InvalidArgument) as problem:
            self._note(problem)
            return _unevaluated(problem)

    async def _decide(self, described: EvaluateRequest) -> EvaluateResponse:
        try:
            return await self._answer(
                described, NO_ROUTE, self._end_user_headers(), adapter="authzen"
            )
        except PolicydError as problem:
            self._note(problem)
            raise

    def _authenticate(self, request: Request, *, bearer: bool) -> None:
        if self._token and not request.shows(self._token, bearer=bearer):
            where = "X-Policyd-Token, or as a bearer token" if bearer else "X-Policyd-Token"
            raise Unauthenticated(
                "The token of --caller-token-file is missing or wrong: the gateway's operator "
                f"should have it sent in {where}"
            )


def _unevaluated(problem: BodiesFull | Unauthenticated | InvalidArgument) -> Reply:
    if isinstance(problem, BodiesFull):
        return _text(503, str(problem), retry_after=AGAIN)
    if isinstance(problem, Unauthenticated):
        return _text(401, str(problem), (("WWW-Authenticate", 'Bearer realm="policyd"'),))
    return _text(400, str(problem))


def _problem(problem: PolicydError) -> Reply:
    status = _STATUS.get(type(problem), 503)
    message = str(problem)
    again = AGAIN if status == 503 else 0
    kind = _TYPES.get(status, "server_error")
    return error(status, kind, message[:1].upper() + message[1:], retry_after=again)


def _descriptor(request: Request, body: bytes) -> EvaluateRequest:
    if request.method != "POST":
        raise InvalidArgument("send the descriptor in a POST request")
    try:
        return json_format.Parse(body, EvaluateRequest(), max_recursion_depth=20)
    except (json_format.ParseError, ValueError, RecursionError) as problem:
        raise InvalidArgument(
            f"the body is not a descriptor (policyd.v1.EvaluateRequest in JSON): {problem}"
        ) from None


def _configuration(request: Request) -> Reply:
    host = request.one("host")
    if request.method not in ("GET", "HEAD"):
        return _text(405, "send a GET request", (("Allow", "GET, HEAD"),))
    if not _HOST.fullmatch(host):
        return _text(400, "send one Host header, from which the URLs are made")
    # By the standard, the caller compares this URL with the one that it used.
    scheme = "https" if request.one("x-forwarded-proto") == "https" else request.scheme
    return _json(authzen.configuration(f"{scheme}://{host}"))


def _json(content: object) -> Reply:
    return Reply(200, (("Content-Type", "application/json"),), msgspec.json.encode(content))


def _text(
    status: int,
    message: str,
    headers: tuple[tuple[str, str], ...] = (),
    *,
    retry_after: int = 0,
) -> Reply:
    kind = (("Content-Type", "text/plain; charset=utf-8"),)
    return Reply(status, (*kind, *headers), message.encode(), retry_after=retry_after)
