"""/v1/check: a request that a proxy asks about -> the question, and the answer -> a response.

Which request it is stands in X-Forwarded-Method and X-Forwarded-Uri, or X-Original-Method and
X-Original-URI (or X-Original-URL), which the proxy sets and the client cannot. Or it stands in the
check's own first line: /v1/check/v1/chat/completions. The headers and the body are the request's.

A body that does not come is unknown, never absent: nobody knows whether the proxy has kept it.
"""

import re
from collections.abc import Callable

from policyd.asgi.reply import WEBSOCKET, Reply, error
from policyd.descriptor.body_memory import AT_ONCE, Bodies, Held
from policyd.descriptor.describe import MAX_REMARK, put_facts
from policyd.descriptor.headers import PREFIX, agreed
from policyd.descriptor.identifiers import TOO_LARGE, unreadable
from policyd.engine import endpoints, method_override
from policyd.engine.model import Target, UserState
from policyd.errors import InvalidArgument
from policyd.http.request import Request, printable
from policyd.v1.policy_pb2 import DECISION_ALLOW, EvaluateRequest, EvaluateResponse, Header

PATH = "/v1/check"
_METHODS = ("x-forwarded-method", "x-original-method")
_TARGETS = ("x-forwarded-uri", "x-original-uri", "x-original-url")
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Without white space, which would be two targets in one header, and without a fragment, where
# servers part ways.
_TARGET = re.compile(r"(?:/|\*$|[A-Za-z][A-Za-z0-9+.-]*://)[\x21\x22\x24-\x7e\x80-\xff]*")

NO_BODY = error(
    400,
    "invalid_request",
    "The request body did not come to the policy check, so its user field cannot be checked. "
    "Send a JSON object; if you did, ask the gateway's operator to have it send bodies to policyd",
)
CUT_BODY = error(
    413,
    "invalid_request",
    "The request body came to the policy check incomplete, so its user field cannot be checked. "
    "Send a smaller one, or ask the gateway's operator to let it buffer larger bodies",
)


def is_check(path: str) -> bool:
    """Whether a request for `path` is a check."""
    return path == PATH or path.startswith(PATH + "/")


def refusal(request: Request) -> Reply | None:
    """The answer to a check that no decision is needed for."""
    if any("websocket" in value.lower() for value in request.all("upgrade")):
        return WEBSOCKET
    return None


async def question(
    request: Request, limit: int, bodies: Bodies, knows: Callable[[EvaluateRequest], bool]
) -> tuple[EvaluateRequest, Reply | None]:
    """The question, and what to answer in place of a denial that only says what was not read.

    Of a body, `limit` bytes are read, where `knows` finds the key in force. Raises InvalidArgument,
    BodiesFull, TimeoutError or ClientGone.
    """
    method, path, query = _original(request)
    overriding = method_override.overriding(method, request.headers, query)
    target = endpoints.resolve("POST" if overriding else method, path)
    own = [pair for pair in request.headers if pair[0].startswith(PREFIX)]
    asked = EvaluateRequest(
        headers=[Header(name=name, value=value) for name, value in [*own, *overriding]],
        method=method,
        path=path,
        source_ip=request.source_ip,
        user_agent=request.one("user-agent")[:MAX_REMARK],
        organization=request.one("openai-organization")[:MAX_REMARK],
        request_id=request.one("x-request-id")[:MAX_REMARK],
    )
    if not target.in_scope:
        return asked, None
    if not knows(asked):
        # It is refused whatever it holds, so it is not read.
        put_facts(asked, TOO_LARGE)
        return asked, None
    with bodies.hold() as held:
        return await _with_body(request, target, asked, limit, bodies, held)


async def _with_body(
    request: Request,
    target: Target,
    asked: EvaluateRequest,
    limit: int,
    bodies: Bodies,
    held: Held,
) -> tuple[EvaluateRequest, Reply | None]:
    body = await request.body(limit, held)
    if _is_cut(request):
        put_facts(asked, TOO_LARGE)
        return asked, CUT_BODY
    if body == b"":
        put_facts(asked, unreadable(UserState.NOT_JSON))
        return asked, NO_BODY
    facts = TOO_LARGE
    if body is not None:
        content_type = agreed(request.all("content-type"))
        coding = ", ".join(request.all("content-encoding"))
        facts = await bodies.read(held, body, content_type, coding, target.endpoint, limit, AT_ONCE)
    put_facts(asked, facts)
    return asked, None


def _original(request: Request) -> tuple[str, str, str]:
    """Method, path and query of the request that is asked about."""
    if request.path == PATH:
        method = _said(request, _METHODS, "X-Forwarded-Method")
        target = printable(_said(request, _TARGETS, "X-Forwarded-Uri"))
    else:
        method, target = request.method, printable(request.path[len(PATH) :])
    if not _METHOD.fullmatch(method):
        raise InvalidArgument("the check names no HTTP method: send one, such as POST")
    if not _TARGET.fullmatch(target) or request.has_fragment:
        raise InvalidArgument(
            "the check names no request target: send a path that begins with / and has neither "
            "white space nor #"
        )
    path, _, query = target.partition("?")
    return method, path, query if request.path == PATH else request.query


def _said(request: Request, names: tuple[str, ...], name: str) -> str:
    said = agreed(value for one in names for value in request.all(one))
    if said:
        return said
    what = "does not say" if said == "" else "says twice, and differently,"
    raise InvalidArgument(
        f"the check {what} which request it is about. The gateway's operator should have it set "
        f"{name}, in place of the client's own"
    )


def _is_cut(request: Request) -> bool:
    """Whether the proxy says that it has sent less than the whole body."""
    envoy = {value.lower() for value in request.all("x-envoy-auth-partial-body")}
    return "partial" in request.all("x-policyd-body") or bool(envoy - {"false"})


def reply(response: EvaluateResponse, unread: Reply | None, allowed: bytes) -> Reply:
    """200 with the body `allowed` where the request may go upstream, else the denial itself.

    `unread` takes the place of a denial for a body that could not be read.
    """
    if response.decision == DECISION_ALLOW:
        path = [("X-Policyd-Upstream-Path", response.upstream_path)] * bool(response.upstream_path)
        headers = [("Content-Type", "application/json"), *_remarks(response), *path]
        return Reply(200, headers, allowed)
    if unread is not None and UserState(response.explanation.user_state).is_unreadable:
        return unread.with_headers(_remarks(response), response.decision_id)
    denial = response.denial
    given = [(header.name, header.value) for header in denial.headers]
    headers = [*given, *_remarks(response)]
    return Reply(denial.http_status, headers, denial.body, response.decision_id)


def _remarks(response: EvaluateResponse) -> list[tuple[str, str]]:
    """What the proxy is told about the decision. Its presence tells that one was made."""
    remarks = {
        "X-Policyd-Decision-Id": response.decision_id,
        "X-Policyd-Revision": str(response.revision),
        "X-Policyd-Flags": ",".join(flag.type for flag in response.flags),
    }
    return [(name, value) for name, value in remarks.items() if value]
