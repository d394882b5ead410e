"""A request's body -> its attributes: the end-user identifiers and the model in it.

Bodies are read within bounds on their bytes (as sent and decompressed), depth and parts. A body
that cannot be read with certainty gets a state that names the reason, and never counts as one with
a user.
"""

from policyd.descriptor import form, json_body, media_type
from policyd.descriptor.content_encoding import UnreadableBody
from policyd.descriptor.identifiers import ABSENT, BodyAttributes, unreadable
from policyd.engine.places import Endpoint
from policyd.engine.states import ModelState, Number, NumberState, UserState

MAX_BODY = 64 * 2**20
"""Bytes of a body, as sent and decompressed, unless an adapter sets its own bound."""
MAX_RAW_BODY = 4 * 2**20
"""Bytes of a body that a caller of PolicyService sends in place of its attributes."""
_NO_ATTRIBUTES = BodyAttributes(
    *(ABSENT, ABSENT, "", ModelState.ABSENT),
    *(Number(NumberState.ABSENT), Number(NumberState.ABSENT), Number(NumberState.GIVEN)),
)


def read_body(
    body: bytes,
    content_type: str | None,
    content_encoding: str,
    endpoint: Endpoint | None,
    limit: int = MAX_BODY,
) -> BodyAttributes:
    """Read a body's attributes. Total: any bytes and strings will do. `limit` bounds the body's
    bytes, as sent and decompressed.

    `endpoint` is what the request asks for, None if that is not known; it settles whether the body
    may be a form, or a session description (SDP), which names no end user. Otherwise it is read as
    JSON, whatever its type claims, as upstreams do; one that an upstream could take for something
    else counts as unreadable.
    `content_type` is None where several headers differ: the upstream may follow either.
    """
    takes_form = endpoint is None or endpoint.takes_form
    if content_type is None:
        return unreadable(UserState.BAD_FORM if takes_form else UserState.NOT_JSON)
    if endpoint and endpoint.takes_sdp and media_type.is_sdp(content_type):
        return _NO_ATTRIBUTES
    is_form = takes_form and media_type.claims_multipart(content_type)
    in_session = endpoint is not None and endpoint.safety_in_session
    try:
        if is_form:
            return form.read(body, content_type, content_encoding, limit)
        return json_body.read(body, content_type, content_encoding, limit, in_session)
    except UnreadableBody as problem:
        return unreadable(problem.state)
