"""/v1/check: a request that a proxy asks about -> its descriptor, and the answer -> a response.

X-Forwarded-Method and X-Forwarded-Uri say which request it is, or X-Original-Method and
X-Original-URI (or X-Original-URL), which the proxy sets and the client cannot. Or the check's own
request line does: /v1/check/v1/chat/completions. The headers and the body are the request's.

The proxy's operator can set policies for a route after a semicolon, as in
/v1/check;NAME=enforce:500 (descriptor/route.py says which). That part of the path is the
proxy's own: no client can change it.

A body that does not arrive is unknown, never absent: the proxy may have kept it.
"""

import re
from collections.abc import Callable
from urllib.parse import unquote

from policyd.asgi.reply import Reply, denied, error
from policyd.descriptor import headers
from policyd.descriptor.body_memory import Bodies
from policyd.descriptor.describe import (
    HttpRequest,
    about_key,
    describe,
    read_attributes,
)
from policyd.descriptor.headers import NO_HEADERS
from policyd.descriptor.identifiers import TOO_LARGE, unreadable
from policyd.descriptor.route import route_settings
from policyd.engine import denial
from policyd.engine.decision import NO_ROUTE
from policyd.engine.settings import RouteSettings
from policyd.engine.states import UserState
from policyd.errors import InvalidArgument
from policyd.http.request import Request, printable
from policyd.v1.policy_pb2 import (
    DECISION_ALLOW,
    CheckKeyRequest,
    EvaluateRequest,
    EvaluateResponse,
)

PATH = "/v1/check"
_WHERE = "the settings in the check's path"
_METHODS = ("x-forwarded-method", "x-original-method")
_TARGETS = ("x-forwarded-uri", "x-original-uri", "x-original-url")
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Without white space, which would make two targets of one header, and without a fragment, which
# servers treat differently.
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
    return path.startswith(PATH) and path[len(PATH) : len(PATH) + 1] in ("", "/", ";")


def route(path: str) -> RouteSettings:
    """What the check's path sets for the route. Raises InvalidArgument."""
    parameters = _split(path)[0]
    if not parameters:
        return NO_ROUTE
    pairs = [unquote(one).partition("=") for one in parameters.split(";")]
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise InvalidArgument(f"{_WHERE} set something twice: set it once")
    return route_settings(frozenset((name, value) for name, _, value in pairs), _WHERE)


def _split(path: str) -> tuple[str, str]:
    """What stands between the semicolon after PATH and the next slash, and what follows."""
    parameters, slash, rest = path[len(PATH) :].partition("/")
    return parameters[1:], slash + rest


async def described(
    request: Request,
    limit: int,
    bodies: Bodies,
    knows: Callable[[CheckKeyRequest], bool],
    end_user_headers: frozenset[str] = NO_HEADERS,
) -> tuple[EvaluateRequest, Reply | None]:
    """The descriptor of the request that a check is about, and the reply, if any, that takes the
    place of a denial for an unreadable body.

    Up to `limit` bytes of a body are read, if `knows` finds the key in force. `end_user_headers`
    may name the end user. Raises InvalidArgument, BodiesFull, TimeoutError or ClientGone.
    """
    method, path, query = _original(request)
    about = HttpRequest(
        *(method, path, query, request.headers),
        source_ip=request.source_ip,
        end_user_headers=end_user_headers,
    )
    if not about.target.in_scope:
        return describe(about), None
    if not knows(about_key(about)):
        # The request is denied whatever its body holds, so the body is not read.
        return describe(about, TOO_LARGE), None
    with bodies.hold() as held:
        body = await request.body(limit, held)
        if headers.is_partial(request.headers) or "partial" in request.all("x-policyd-body"):
            return describe(about, TOO_LARGE), CUT_BODY
        if body is not None and not body:
            return describe(about, unreadable(UserState.NOT_JSON)), NO_BODY
        if body is None:
            return describe(about, TOO_LARGE), None
        return describe(about, await read_attributes(about, body, bodies, held, limit)), None


def _original(request: Request) -> tuple[str, str, str]:
    """Method, path and query of the request that the check is about."""
    rest = _split(request.path)[1]
    if not rest:
        method = _agreed(request, _METHODS, "X-Forwarded-Method")
        target = printable(_agreed(request, _TARGETS, "X-Forwarded-Uri"))
    else:
        method, target = request.method, printable(rest)
    if not _METHOD.fullmatch(method):
        raise InvalidArgument("the check names no HTTP method: send one, such as POST")
    if not _TARGET.fullmatch(target) or request.has_fragment:
        raise InvalidArgument(
            "the check names no request target: send a path that begins with / and has neither "
            "white space nor #"
        )
    path, _, query = target.partition("?")
    return method, path, request.query if rest else query


def _agreed(request: Request, names: tuple[str, ...], name: str) -> str:
    found = headers.agreed(value for one in names for value in request.all(one))
    if found:
        return found
    what = "does not say" if found == "" else "says twice, and differently,"
    raise InvalidArgument(
        f"the check {what} which request it is about. The gateway's operator should have it set "
        f"{name}, in place of the client's own"
    )


def reply(response: EvaluateResponse, unread: Reply | None, allowed: bytes) -> Reply:
    """200 with the body `allowed` where the request may go upstream, else the denial itself.

    `unread` takes the place of a denial for a body that could not be read.
    """
    if response.decision == DECISION_ALLOW:
        path = [("X-Policyd-Upstream-Path", response.upstream_path)] * bool(response.upstream_path)
        shown = [("Content-Type", "application/json"), *_remarks(response), *path]
        return Reply(200, shown, allowed)
    # A denial by a policy that needs no body stays as it is.
    is_unread = response.denial.http_status in denial.UNREADABLE
    if unread is not None and is_unread:
        return unread.with_headers(_remarks(response), response.decision_id)
    return denied(response, _remarks(response))


def _remarks(response: EvaluateResponse) -> list[tuple[str, str]]:
    """Headers about the decision, for the proxy. They say that a decision was made."""
    remarks = {
        "X-Policyd-Decision-Id": response.decision_id,
        "X-Policyd-Revision": str(response.revision),
        "X-Policyd-Flags": ",".join(flag.type for flag in response.flags),
    }
    return [(name, value) for name, value in remarks.items() if value]
