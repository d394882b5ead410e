"""An HTTP request -> its descriptor: what every adapter asks policyd about it.

An adapter gathers the parts of a request as far as it has them, and judges none of them. Which
headers policyd needs, what overrides the method, which endpoint the request asks for and how its
body is read is settled here alone, so that no two adapters differ.

The descriptor holds a body's attributes, never the body. Where an adapter has none of a body or
only part of it, the attributes are those of `unreadable(state)`, which never count as a user.
"""

from dataclasses import dataclass, field
from typing import Any

from policyd.descriptor import end_users, headers
from policyd.descriptor.body_memory import Bodies, Held
from policyd.descriptor.headers import KEY_HEADER, NO_HEADERS, PREFIX, Headers
from policyd.descriptor.identifiers import NOT_READ, BodyAttributes
from policyd.descriptor.pieces import Pieces
from policyd.descriptor.reader_process import BodyContext
from policyd.engine import endpoints, method_override
from policyd.engine.places import SAFETY_HEADER, SAFETY_IDENTIFIER, USER, Target
from policyd.engine.states import ModelState, NumberState
from policyd.telemetry.trace_context import TRACEPARENT
from policyd.v1.policy_pb2 import CheckKeyRequest, EvaluateRequest, Header

MAX_REMARK = 256
"""Characters that are kept of a text that policyd only logs."""
_Header = dict[str, str]
"""A header as a message takes it."""
_TYPE = "content-type"
_ENCODING = "content-encoding"
_AGENT = "user-agent"
_ORGANIZATION = "openai-organization"
_REQUEST_ID = "x-request-id"
READ = method_override.HEADERS | {
    *(_TYPE, _ENCODING, _AGENT, _ORGANIZATION, _REQUEST_ID, SAFETY_HEADER, TRACEPARENT)
}
"""The headers that are read here, besides those that begin with PREFIX and those of end users."""


@dataclass(slots=True)
class HttpRequest:
    """An HTTP request, as far as an adapter has it. What is empty is unknown."""

    method: str
    path: str
    """As it goes upstream, percent-encoded, without its query string."""
    query: str
    headers: Headers
    """At least those that READ, PREFIX and `end_user_headers` name."""
    source_ip: str = ""
    key: str = ""
    """The API key that counts where no header names one."""
    request_id: str = ""
    """The ID that counts where no header gives one."""
    in_scope: bool | None = None
    """Whether a call that has neither method nor path is in scope, as the adapter knows."""
    end_user_headers: frozenset[str] = NO_HEADERS
    """The headers, in lower case, in which the operator trusts this client or proxy to name end
    users, besides SAFETY_HEADER."""
    target: Target = field(init=False)
    """What the request asks for."""
    overriding: method_override.Headers = field(init=False)
    """The headers of its descriptor that say what makes a POST of it; empty if nothing does."""

    def __post_init__(self) -> None:
        self.overriding = ()
        if not method_override.is_post(self.method):
            given = headers.pairs(self.headers)
            self.overriding = method_override.overriding(self.method, given, self.query)
        if self.in_scope is None:
            method = "POST" if self.overriding else self.method
            self.target = endpoints.resolve(method, self.path)
        else:
            self.target = Target(self.in_scope)

    @property
    def content_encoding(self) -> str:
        """How its body is compressed; empty if it is not."""
        return headers.content_encoding(self.headers.get(_ENCODING, ()))

    def first(self, name: str) -> str:
        """The first value of a header, or an empty string."""
        values = self.headers.get(name)
        return values[0] if values else ""


def describe(request: HttpRequest, attributes: BodyAttributes = NOT_READ) -> EvaluateRequest:
    """The descriptor of a request whose body has these attributes."""
    # Making a message in one step, headers included, costs half as much as making the headers first
    # and setting fields later. An empty field costs as much as any other, so it is left out.
    fields: dict[str, Any] = {
        "headers": _own_headers(request) + _end_user_headers(request) + _trace_headers(request),
        "method": request.method,
        "path": request.path,
        "source_ip": request.source_ip,
        "model": attributes.model[:MAX_REMARK],
        "user_state": attributes.user.state,
        "safety_identifier_state": attributes.safety_identifier.state,
    }
    if agent := request.first(_AGENT):
        fields["user_agent"] = _remark(agent)
    if organization := request.first(_ORGANIZATION):
        fields["organization"] = _remark(organization)
    if request_id := request.first(_REQUEST_ID) or request.request_id:
        fields["request_id"] = _remark(request_id)
    if key := _key(request):
        fields["key"] = key
    if request.in_scope is not None:
        fields["in_scope"] = request.in_scope
    if attributes.user.value:
        fields["user"] = attributes.user.value
    if attributes.safety_identifier.value:
        fields["safety_identifier"] = attributes.safety_identifier.value
    if attributes.model_state is not ModelState.UNKNOWN:
        _add_what_is_stated(fields, attributes)
    return EvaluateRequest(**fields)


def _add_what_is_stated(fields: dict[str, Any], attributes: BodyAttributes) -> None:
    """Add what a body that was read states besides `user` and `safety_identifier`."""
    fields["model_state"] = attributes.model_state
    limit, choices, chars = attributes.token_limit, attributes.choices, attributes.prompt_chars
    if limit.state is NumberState.GIVEN:
        fields["token_limit"] = limit.value
    else:
        fields["token_limit_state"] = limit.state
    # INVALID choices are not sent: the token limit is INVALID with them.
    if choices.state is NumberState.GIVEN:
        fields["choices"] = choices.value
    if chars.state is NumberState.GIVEN:
        fields["prompt_characters"] = chars.value
    else:
        fields["prompt_characters_state"] = chars.state
    user, safety_identifier = attributes.user, attributes.safety_identifier
    if attributes.others or user.further_values or safety_identifier.further_values:
        fields["end_users"] = _end_users(attributes)


def _end_users(attributes: BodyAttributes) -> list[dict[str, Any]]:
    """The end users in further places, and all values after the first in each place."""
    found = [
        {"place": place, "state": one.state, "value": one.value or None}
        for place, one in attributes.others
    ]
    own = (USER, attributes.user), (SAFETY_IDENTIFIER, attributes.safety_identifier)
    for place, one in (*own, *attributes.others):
        for value in one.further_values:
            found.append({"place": place, "state": one.state, "value": value})
    return found


def about_key(request: HttpRequest) -> CheckKeyRequest:
    """What to ask before the body is read: whether the request's API key is in force.

    If it is not, the request is denied whatever its body holds.
    """
    return CheckKeyRequest(
        headers=[Header(**one) for one in _own_headers(request)],
        method=request.method,
        path=request.path,
        key=_key(request),
    )


async def read_attributes(
    request: HttpRequest, body: Pieces, bodies: Bodies, held: Held, limit: int
) -> BodyAttributes:
    """The attributes of a request's body, which may have `limit` bytes, as sent and decompressed.

    Raises BodiesFull.
    """
    content_type = headers.agreed(request.headers.get(_TYPE, ()))
    coding = request.content_encoding
    about = BodyContext(content_type, coding, request.target.endpoint, limit)
    return await bodies.read(held, len(body), body, about)


def _remark(text: str) -> str:
    # A byte that is not UTF-8 comes as a lone surrogate, which no message can hold.
    text = text[:MAX_REMARK]
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _own_headers(request: HttpRequest) -> list[_Header]:
    own: list[_Header] = [
        {"name": name, "value": value}
        for name, values in request.headers.items()
        if name.startswith(PREFIX)
        for value in values
    ]
    if request.overriding:
        own += [{"name": name, "value": value} for name, value in request.overriding]
    return own


def _end_user_headers(request: HttpRequest) -> list[_Header]:
    endpoint = request.target.endpoint
    own = {SAFETY_HEADER} if endpoint is not None and endpoint.safety_header else NO_HEADERS
    names = request.end_user_headers | own
    return [
        {"name": name, "value": end_users.value(text)}
        for name in sorted(names)
        for text in request.headers.get(name, ())
    ]


def _trace_headers(request: HttpRequest) -> list[_Header]:
    """What names the trace that the request belongs to, for a policyd that sends traces."""
    given = request.headers.get(TRACEPARENT)
    if not given or len(given) > 1 or len(given[0]) > MAX_REMARK:
        return []
    return [{"name": TRACEPARENT, "value": _remark(given[0])}]


def _key(request: HttpRequest) -> str:
    return request.key if KEY_HEADER not in request.headers else ""
