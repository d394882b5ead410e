"""Envoy's CheckRequest -> the question that PolicyServicer is asked, and the route's settings."""

from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from policyd.descriptor.body import MAX_RAW_BODY
from policyd.descriptor.body_memory import Bodies
from policyd.descriptor.describe import put_facts
from policyd.descriptor.headers import KEY_HEADER, OVERRIDE_HEADER, PREFIX, TRACE_HEADER, agreed
from policyd.descriptor.identifiers import TOO_LARGE, BodyAttributes
from policyd.engine import endpoints, method_override
from policyd.engine.model import IDENTIFIERS, Endpoint, Mode, Override, RouteSettings
from policyd.errors import InvalidArgument, InvalidDescriptor
from policyd.v1 import policy_pb2 as pb

HttpRequest = Any
"""An envoy.service.auth.v3.AttributeContext.HttpRequest: the package has no types."""

_PARTIAL = "x-envoy-auth-partial-body"
_LENGTH = "content-length"
_TYPE = "content-type"
# Envoy's map joins repeats by commas. None of these has a comma of its own in it.
_ONE_VALUE = frozenset({KEY_HEADER, OVERRIDE_HEADER, TRACE_HEADER, _LENGTH, _TYPE})


class Arrival(Enum):
    """How much of the body came along with a CheckRequest."""

    WHOLE = 1
    CUT = 2
    """Envoy holds more than it sent."""
    MISSING = 3
    """The request may have one, and none of it came."""


class Check(NamedTuple):
    """What a CheckRequest says."""

    question: pb.EvaluateRequest
    target: str
    """Path and query as they came."""
    own_headers: tuple[str, ...]
    """The names of those that must not go upstream."""
    arrival: Arrival
    is_websocket: bool
    """Whether it asks for a connection that no policy can see into."""


async def read(
    attributes: Any, bodies: Bodies, knows: Callable[[pb.EvaluateRequest], bool]
) -> Check:
    """Read the attributes of a CheckRequest. The body is read where `knows` finds the key in force.

    Raises InvalidDescriptor where none are of HTTP.
    """
    if not attributes.request.HasField("http"):
        raise InvalidDescriptor(
            "policyd decides HTTP requests: use Envoy's HTTP filter ext_authz, not the network one"
        )
    http = attributes.request.http
    headers = _headers(http)
    body = http.raw_body or http.body.encode()
    arrival = _arrival(http, headers, body)
    path, _, query = http.path.partition("?")
    overriding = method_override.overriding(http.method, _pairs(headers), query)
    question = pb.EvaluateRequest(
        headers=[pb.Header(name=n, value=v) for n, v in [*_for_policyd(headers), *overriding]],
        method=http.method,
        path=path,
        source_ip=attributes.source.address.socket_address.address,
        user_agent=_first(headers, "user-agent"),
        organization=_first(headers, "openai-organization"),
        request_id=_first(headers, "x-request-id") or http.id,
    )
    target = endpoints.resolve("POST" if overriding else http.method, path)
    if target.in_scope:
        facts = TOO_LARGE
        if arrival is Arrival.WHOLE and knows(question):
            facts = await _read_body(bodies, body, headers, target.endpoint)
        put_facts(question, facts)
    is_websocket = any("websocket" in value.lower() for value in headers.get("upgrade", ()))
    return Check(question, http.path, tuple(filter(_is_own, headers)), arrival, is_websocket)


# --- headers -----------------------------------------------------------------------------------


_Headers = dict[str, list[str]]
"""Values by name in lower case, repeats kept as far as they can be told."""


def _headers(http: HttpRequest) -> _Headers:
    if not http.HasField("header_map"):
        return {name.lower(): _repeats(name.lower(), one) for name, one in http.headers.items()}
    headers: _Headers = {}
    for one in http.header_map.headers:
        headers.setdefault(one.key.lower(), []).append(_value(one))
    return headers


def _value(header: Any) -> str:
    # What is not UTF-8 is marked as such, and is then no key, no override and no media type.
    return str(header.value) or header.raw_value.decode(errors="replace")


def _repeats(name: str, joined: str) -> list[str]:
    if "," not in joined or name not in _ONE_VALUE:
        return [joined]
    values = [value.strip() for value in joined.split(",")]
    # One header may hold the comma itself. Then it is neither true nor false, and weakens nothing.
    return [*values, joined] if name == OVERRIDE_HEADER else values


def _pairs(headers: _Headers) -> list[tuple[str, str]]:
    return [(name, value) for name, values in headers.items() for value in values]


def _for_policyd(headers: _Headers) -> list[tuple[str, str]]:
    return [(name, value) for name, value in _pairs(headers) if name.startswith(PREFIX)]


def _first(headers: _Headers, name: str) -> str:
    return headers[name][0] if name in headers else ""


def _is_own(name: str) -> bool:
    # An underscore is a dash to some upstreams.
    return name.replace("_", "-").startswith(PREFIX)


# --- the body ----------------------------------------------------------------------------------


def _arrival(http: HttpRequest, headers: _Headers, body: bytes) -> Arrival:
    partial = {value.strip().lower() for value in headers.get(_PARTIAL, ())}
    length = agreed(headers.get(_LENGTH, ()))
    if partial - {"false"}:
        return Arrival.CUT
    if body:
        return Arrival.CUT if _number(length) > len(body) else Arrival.WHOLE
    if length == "0" or (partial and not _number(length)):
        return Arrival.WHOLE
    # In HTTP/1 one of two headers announces a body; in HTTP/2 nothing need to.
    is_announced = length != "" or "transfer-encoding" in headers
    return Arrival.MISSING if is_announced or http.protocol[:6] != "HTTP/1" else Arrival.WHOLE


def _number(length: str | None) -> int:
    return int(length) if length and length.isdecimal() and len(length) < 20 else 0


async def _read_body(
    bodies: Bodies, body: bytes, headers: _Headers, endpoint: Endpoint | None
) -> BodyAttributes:
    content_type = agreed(headers.get(_TYPE, ()))
    coding = ", ".join(headers.get("content-encoding", ()))
    # Who lets larger messages in, by --max-message, wants larger bodies read.
    limit = max(MAX_RAW_BODY, len(body))
    with bodies.hold() as held:
        return await bodies.read(held, body, content_type, coding, endpoint, limit)


# --- the route's settings ----------------------------------------------------------------------

_NAMESPACE = "policyd"
_Member = TypeVar("_Member", Mode, Override)


def route_settings(extensions: Mapping[str, str]) -> RouteSettings:
    """What a route's context_extensions set. Other systems' are left alone.

    Raises InvalidArgument where a name or a value of policyd's is unknown.
    """
    return _route_settings(
        frozenset(one for one in extensions.items() if one[0].lower().startswith(_NAMESPACE))
    )


# Routes are few, and each says the same with every request.
@lru_cache(maxsize=1024)
def _route_settings(extensions: frozenset[tuple[str, str]]) -> RouteSettings:
    found = dict(extensions)
    if unknown := sorted(found.keys() - _READERS.keys()):
        raise InvalidArgument(
            f"the route's context_extensions set {unknown[0]!r}, which policyd does not know: "
            f"it knows {', '.join(_READERS)}"
        )
    return RouteSettings(**dict(_READERS[name](name, value) for name, value in found.items()))


def _one_of(field: str, members: type[_Member]) -> Callable[[str, str], tuple[str, Any]]:
    values = {member.name.lower(): member for member in members}

    def read(name: str, value: str) -> tuple[str, _Member]:
        if value not in values:
            raise _unknown(name, value, f"one of {', '.join(values)}")
        return field, values[value]

    return read


def _accept(name: str, value: str) -> tuple[str, tuple[str, ...]]:
    accepted = tuple(one.strip() for one in value.split(","))
    if not set(accepted) <= set(IDENTIFIERS):
        raise _unknown(name, value, f"a list of {' and '.join(IDENTIFIERS)}, split by commas")
    return "accept", accepted


def _unknown(name: str, value: str, mend: str) -> InvalidArgument:
    return InvalidArgument(f"the route's context_extensions set {name} to {value!r}: give {mend}")


_READERS = {
    f"{_NAMESPACE}.mode": _one_of("mode", Mode),
    f"{_NAMESPACE}.override": _one_of("override", Override),
    f"{_NAMESPACE}.accept": _accept,
}
