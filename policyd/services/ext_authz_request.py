"""Envoy's CheckRequest -> the request that policyd describes, and the route's settings."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from policyd.descriptor import headers
from policyd.descriptor.body import MAX_RAW_BODY
from policyd.descriptor.body_memory import Bodies
from policyd.descriptor.describe import (
    HttpRequest,
    about_key,
    describe,
    read_attributes,
)
from policyd.descriptor.headers import (
    KEY_HEADER,
    NO_HEADERS,
    PARTIAL_BODY,
    TRACE_HEADER,
    Headers,
)
from policyd.descriptor.identifiers import NOT_READ, TOO_LARGE, BodyAttributes
from policyd.descriptor.pieces import Pieces
from policyd.descriptor.route import route_settings
from policyd.engine.decision import NO_ROUTE
from policyd.engine.places import SAFETY_HEADER
from policyd.engine.settings import RouteSettings
from policyd.errors import InvalidDescriptor
from policyd.policies import TABLE
from policyd.v1 import policy_pb2 as pb

EnvoyRequest = Any
"""An envoy.service.auth.v3.AttributeContext.HttpRequest: the package has no types."""

_LENGTH = "content-length"
_TYPE = "content-type"
# Envoy's map joins repeats by commas. None of these headers holds a comma of its own.
_ONE_VALUE = frozenset({KEY_HEADER, *TABLE.by_header, TRACE_HEADER, SAFETY_HEADER, _LENGTH, _TYPE})


class Arrival(Enum):
    """How much of the body came with a CheckRequest."""

    WHOLE = 1
    CUT = 2
    """Envoy holds more than it sent."""
    MISSING = 3
    """The request may have a body, and none of it came."""


class Check(NamedTuple):
    """What a CheckRequest holds."""

    described: pb.EvaluateRequest
    target: str
    """Path and query as they came."""
    own_headers: tuple[str, ...]
    """The names of the headers that must not go upstream."""
    arrival: Arrival
    is_websocket: bool
    """Whether it asks for a connection that no policy can look into."""


async def read(
    attributes: Any,
    bodies: Bodies,
    knows: Callable[[pb.CheckKeyRequest], bool],
    end_user_headers: frozenset[str] = NO_HEADERS,
) -> Check:
    """Read the attributes of a CheckRequest. The body is read where `knows` finds the key in force.
    `end_user_headers` may name the end user.

    Raises InvalidDescriptor where they are not of an HTTP request.
    """
    if not attributes.request.HasField("http"):
        raise InvalidDescriptor(
            "policyd decides HTTP requests: use Envoy's HTTP filter ext_authz, not the network one"
        )
    http = attributes.request.http
    given = _headers(http, end_user_headers | _ONE_VALUE)
    body = http.raw_body or http.body.encode()
    arrival = _arrival(http, given, body)
    path, _, query = http.path.partition("?")
    source_ip = attributes.source.address.socket_address.address
    request = HttpRequest(
        *(http.method, path, query, given),
        source_ip=source_ip,
        request_id=http.id,
        end_user_headers=end_user_headers,
    )
    body_attributes = NOT_READ
    if request.target.in_scope:
        body_attributes = TOO_LARGE
        if arrival is Arrival.WHOLE and knows(about_key(request)):
            body_attributes = await _read_body(bodies, body, request)
    return Check(
        describe(request, body_attributes),
        http.path,
        tuple(filter(headers.is_own, given)),
        arrival,
        headers.wants_websocket(given),
    )


async def _read_body(bodies: Bodies, body: bytes, request: HttpRequest) -> BodyAttributes:
    # An operator who lets larger messages in, by --max-message, wants larger bodies read.
    limit = max(MAX_RAW_BODY, len(body))
    with bodies.hold() as held:
        return await read_attributes(request, Pieces(body), bodies, held, limit)


# --- headers -----------------------------------------------------------------------------------


def _headers(http: EnvoyRequest, one_value: frozenset[str]) -> Headers:
    """The headers, repeats kept as far as Envoy shows them: those in `one_value` hold no comma."""
    if not http.HasField("header_map"):
        given = [(name.lower(), joined) for name, joined in http.headers.items()]
        return {name: _repeats(name, joined, name in one_value) for name, joined in given}
    return headers.by_name((one.key.lower(), _value(one)) for one in http.header_map.headers)


def _value(header: Any) -> str:
    # Bytes that are not UTF-8 are replaced, so the value is no key, no override and no media type.
    return str(header.value) or header.raw_value.decode(errors="replace")


def _repeats(name: str, joined: str, is_one_value: bool) -> list[str]:
    if "," not in joined or not is_one_value:
        return [joined]
    values = [value.strip() for value in joined.split(",")]
    # One header may hold the comma itself. Then it is neither true nor false, and weakens nothing.
    return [*values, joined] if name in TABLE.by_header else values


# --- the body ----------------------------------------------------------------------------------


def _arrival(http: EnvoyRequest, given: Headers, body: bytes) -> Arrival:
    length = headers.agreed(given.get(_LENGTH, ()))
    if headers.is_partial(given):
        return Arrival.CUT
    if body:
        return Arrival.CUT if _number(length) > len(body) else Arrival.WHOLE
    says_partial = bool(given.get(PARTIAL_BODY))
    if length == "0" or (says_partial and not _number(length)):
        return Arrival.WHOLE
    # In HTTP/1, one of two headers announces a body; in HTTP/2, nothing need do so.
    is_announced = length != "" or "transfer-encoding" in given
    return Arrival.MISSING if is_announced or http.protocol[:6] != "HTTP/1" else Arrival.WHOLE


def _number(length: str | None) -> int:
    return int(length) if length and length.isdecimal() and len(length) < 20 else 0


_NAMESPACE = "policyd."


def route(extensions: Mapping[str, str]) -> RouteSettings:
    """What a route's context_extensions set: `policyd.mode`, `policyd.NAME` … Those of other
    systems are left alone.

    Raises InvalidArgument where a name or a value of policyd's is unknown.
    """
    own = [one for one in extensions.items() if one[0].lower().startswith(_NAMESPACE[:-1])]
    if not own:
        return NO_ROUTE
    given = frozenset((name.removeprefix(_NAMESPACE), value) for name, value in own)
    return route_settings(given, "the route's context_extensions", _NAMESPACE)
