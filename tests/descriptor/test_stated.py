"""What bodies state besides the end user: model, token limit, choices; and the further places in
which an end user can stand."""

import pytest

from policyd.descriptor import stated
from policyd.descriptor.body import read_body
from policyd.descriptor.identifiers import FURTHER_PLACES, NOT_READ, BodyAttributes
from policyd.engine import endpoints
from policyd.engine.states import UNKNOWN_NUMBER, ModelState, Number, NumberState, UserState

CHAT = endpoints.ENDPOINTS["/chat/completions"]
CALLS = endpoints.ENDPOINTS["/realtime/calls"]
LIVE = endpoints.ENDPOINTS["/live/sessions"]
EDITS = endpoints.ENDPOINTS["/images/edits"]
ABSENT, INVALID = NumberState.ABSENT, NumberState.INVALID
CONFLICTING = ModelState.CONFLICTING
METADATA, CONTEXT = FURTHER_PLACES
MANY = 10**6


def read(members: str) -> BodyAttributes:
    return read_body(f"{{{members}}}".encode(), "application/json", "", CHAT)


def read_form(*parts: tuple[str, bytes]) -> BodyAttributes:
    body = b"".join(
        f"--B\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"
        for head, value in parts
    )
    return read_body(body + b"--B--\r\n", "multipart/form-data; boundary=B", "", EDITS)


def number(expected: int | NumberState) -> Number:
    if isinstance(expected, NumberState):
        return Number(expected)
    return Number(NumberState.GIVEN, expected)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ("", ABSENT),
        ('"max_tokens":500', 500),
        ('"max_completion_tokens":500', 500),
        ('"max_output_tokens":500', 500),
        ('"max_tokens":5,"max_completion_tokens":7,"max_output_tokens":6', 7),
        ('"max_tokens":0', 0),
        ('"max_tokens":null', ABSENT),
        ('"max_tokens":null,"max_completion_tokens":5', 5),
        ('"max_tokens":5,"max_tokens":7', 7),
        ('"max_tokens":7,"max_tokens":5', 7),
        ('"max_tokens":5,"max_tokens":null', ABSENT),
        ('"max_tokens":null,"max_tokens":5', ABSENT),
        ('"max_tokens":5,"max_tokens":"5"', INVALID),
        ('"max_tokens":5,"max_t\\u006fkens":7', 7),
        ('"Max_Tokens":5', ABSENT),
        ('"max_to\u212aens":5', ABSENT),
        ('"max_tokens":5,"MAX_TOKENS":7', 7),
        ('"max_tokens":5,"Max_Completion_Tokens":7', 7),
        ('"max_tokens":5,"max_to\u212aens":7', 7),
        ('"max_tokens":5,"Max_Tokens":null', ABSENT),
        ('"max_tokens":"5"', INVALID),
        ('"max_tokens":1.5', INVALID),
        ('"max_tokens":5.0', INVALID),
        ('"max_tokens":1e3', INVALID),
        ('"max_tokens":1e400', INVALID),
        ('"max_tokens":-1', INVALID),
        ('"max_tokens":-0', INVALID),
        ('"max_tokens":true', INVALID),
        ('"max_tokens":[5]', INVALID),
        ('"max_tokens":{}', INVALID),
        ('"Max_Tokens":"5"', INVALID),
        ('"max_tokens":999999999999999', 10**15 - 1),
        ('"max_tokens":1000000000000001', 10**15),
        (f'"max_tokens":{"9" * MANY}', 10**15),
        (f'"max_tokens":-{"9" * MANY}', INVALID),
        ('"messages":[{"max_tokens":5}]', ABSENT),
        ('"max_tokens":5,"n":0', INVALID),
        ('"max_tokens":5,"n":3', 5),
        ('"n":-1', INVALID),
    ],
)
def test_token_limit(members: str, expected: int | NumberState) -> None:
    """The token limit is the largest that some server reads, if every server reads one."""
    assert read(members).token_limit == number(expected)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ("", ABSENT),
        ('"n":null', ABSENT),
        ('"n":1', 1),
        ('"n":3,"n":2', 3),
        ('"n":null,"n":3', 3),
        ('"N":3', 3),
        ('"n":1,"N":3', 3),
        ('"n":1000000000', 10**9),
        (f'"n":{"9" * MANY}', 10**15),
        ('"n":0', INVALID),
        ('"n":1,"n":0', INVALID),
        ('"n":-1', INVALID),
        ('"n":"2"', INVALID),
        ('"n":2.0', INVALID),
        ('"N":[]', INVALID),
    ],
)
def test_choices(members: str, expected: int | NumberState) -> None:
    """The choices are the most that some server reads; less than one are no choices."""
    assert read(members).choices == number(expected)


@pytest.mark.parametrize(
    ("members", "expected", "model"),
    [
        ("", ModelState.ABSENT, ""),
        ('"model":"m"', ModelState.GIVEN, "m"),
        ('"model":""', ModelState.GIVEN, ""),
        ('"model":"m","model":"m"', ModelState.GIVEN, "m"),
        ('"model":"m","MODEL":"m"', ModelState.GIVEN, "m"),
        ('"model":null', ModelState.ABSENT, ""),
        ('"Model":null', ModelState.ABSENT, ""),
        ('"model":5', ModelState.NOT_STRING, ""),
        ('"model":["m"]', ModelState.NOT_STRING, ""),
        ('"model":false', ModelState.NOT_STRING, ""),
        ('"model":"m","model":"o"', ModelState.CONFLICTING, "o"),
        ('"model":"m","Model":"o"', ModelState.CONFLICTING, "m"),
        ('"model":"m","m\\u006fdel":"o"', ModelState.CONFLICTING, "o"),
        ('"model":"m","model":null', ModelState.CONFLICTING, ""),
        ('"model":"m","model":{}', ModelState.CONFLICTING, ""),
        ('"Model":"m"', ModelState.CONFLICTING, ""),
        (f'"model":"{"m" * 256}"', ModelState.GIVEN, "m" * 256),
        (f'"model":"{"m" * 257}"', ModelState.TOO_LONG, "m" * 257),
        (f'"model":"{"m" * MANY}"', ModelState.TOO_LONG, "m" * 1024),
    ],
)
def test_model(members: str, expected: ModelState, model: str) -> None:
    """The model is given where every server reads the same one."""
    attributes = read(members)
    assert (attributes.model_state, attributes.model) == (expected, model)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ("", {}),
        ('"metadata":{}', {}),
        ('"metadata":{"a":{"user_id":"x"}}', {}),
        ('"metadata":null', {}),
        ('"metadata":"user_id"', {}),
        ('"metadata":{"user_id":"alice"}', {METADATA: UserState.VALID}),
        ('"metadata":{"user_id":" "}', {METADATA: UserState.BLANK}),
        ('"metadata":{"user_id":null}', {METADATA: UserState.EMPTY}),
        ('"metadata":{"user_id":{}}', {METADATA: UserState.NOT_STRING}),
        ('"metadata":{"user_id":"a","user_id":""}', {METADATA: UserState.EMPTY}),
        ('"metadata":{"user_id":"a","User_ID":""}', {METADATA: UserState.EMPTY}),
        ('"metadata":{"user_id":"a"},"metadata":{"user_id":""}', {METADATA: UserState.EMPTY}),
        ('"metadata":{"user_id":"a"},"METADATA":{"user_id":""}', {METADATA: UserState.EMPTY}),
        ('"metadata":{"user_id":"a"},"metadata":{"user_id":"b"}', {METADATA: UserState.VALID}),
        ('"metadata":{"user_id":"a"},"metadata":{}', {METADATA: UserState.ABSENT}),
        ('"metadata":{"user_id":"a"},"metadata":null', {METADATA: UserState.ABSENT}),
        ('"Metadata":{"user_id":"a"}', {}),
        ('"metadata":{"User_id":"a"}', {}),
        ('"metadata.user_id":"a"', {}),
        ('"user_security_context":{"end_user_id":"a"}', {CONTEXT: UserState.VALID}),
        ('"user_security_context":{"user_id":"a"}', {}),
        (
            '"user_security_context":{"end_user_id":0},"metadata":{"user_id":"a"}',
            {METADATA: UserState.VALID, CONTEXT: UserState.EMPTY},
        ),
    ],
)
def test_further_places(members: str, expected: dict[str, UserState]) -> None:
    """An identifier inside another member is read as strictly as one at the top level."""
    attributes = read(members)
    assert {place: found.state for place, found in attributes.others} == expected
    assert attributes.user.state is UserState.ABSENT


@pytest.mark.parametrize(
    ("parts", "limit", "choices", "model"),
    [
        ([], ABSENT, ABSENT, ModelState.ABSENT),
        ([('name="max_tokens"', b"5"), ('name="n"', b"2")], 5, 2, ModelState.ABSENT),
        ([('name="n"', b"007")], ABSENT, 7, ModelState.ABSENT),
        ([('name="n"', b"2"), ('name="n"', b"3")], ABSENT, 3, ModelState.ABSENT),
        ([('name="n"', b"2"), ('name="N[]"', b"3")], ABSENT, 3, ModelState.ABSENT),
        ([('name="n"', b"9" * MANY)], ABSENT, 10**15, ModelState.ABSENT),
        ([('name="n"', b"")], INVALID, INVALID, ModelState.ABSENT),
        ([('name="n"', b"0")], INVALID, INVALID, ModelState.ABSENT),
        ([('name="n"', b"-1")], INVALID, INVALID, ModelState.ABSENT),
        ([('name="n"', b" 1")], INVALID, INVALID, ModelState.ABSENT),
        ([('name="n"', b"1e3")], INVALID, INVALID, ModelState.ABSENT),
        ([('name="n"', "\u0663".encode())], INVALID, INVALID, ModelState.ABSENT),
        ([('name="n"; filename="n"', b"2")], INVALID, INVALID, ModelState.ABSENT),
        ([('name="number"', b"x")], ABSENT, ABSENT, ModelState.ABSENT),
        ([('name="model"', b"m")], ABSENT, ABSENT, ModelState.GIVEN),
        ([('name="model"', b"m"), ('name="model"', b"m")], ABSENT, ABSENT, ModelState.GIVEN),
        ([('name="model"', b"m"), ('name="model"', b"o")], ABSENT, ABSENT, ModelState.CONFLICTING),
        (
            [('name="model"', b"m"), ('name="model[]"', b"o")],
            ABSENT,
            ABSENT,
            ModelState.CONFLICTING,
        ),
        ([('name="Model"', b"m")], ABSENT, ABSENT, ModelState.CONFLICTING),
        ([('name="model"', b"m" * 257)], ABSENT, ABSENT, ModelState.TOO_LONG),
        ([('name="model"; filename="m"', b"m")], ABSENT, ABSENT, ModelState.NOT_STRING),
        # A value of a name that only some servers know may be in any coding.
        ([('name="model[]"', b"\xff")], ABSENT, ABSENT, ModelState.CONFLICTING),
        ([('name="model"', b"m"), ('name="model[]"', b"m\xff")], ABSENT, ABSENT, CONFLICTING),
        ([('name="max_tokens[]"', b"\xff")], INVALID, ABSENT, ModelState.ABSENT),
    ],
)
def test_forms(
    parts: list[tuple[str, bytes]],
    limit: int | NumberState,
    choices: int | NumberState,
    model: ModelState,
) -> None:
    """In a form, numbers are decimal digits, and names that only some servers know count too."""
    attributes = read_form(*parts)
    assert attributes.token_limit == number(limit)
    assert attributes.choices == number(choices)
    assert attributes.model_state is model


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], 0),
        ([('name="prompt"', "h\u00e9\U0001f43c".encode())], 3),
        ([('name="prompt"', b"ab"), ('name="prompt"', b"c"), ('name="Prompt[]"', b"d")], 4),
        ([('name="prompt"; filename="p.txt"', b"abc")], 3),
        ([('name="\\"prompt\\""', b"abc")], 3),
        ([('name="prompt"', b"\\n\xff")], 3),
        ([('name="image"; filename="i.png"', b"abc")], 0),
    ],
)
def test_the_prompt_of_a_form(parts: list[tuple[str, bytes]], expected: int) -> None:
    """A form's prompt is all that some server takes for it, its bytes as they are."""
    assert read_form(*parts).prompt_chars == number(expected)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ('"session":{"safety_identifier":"a"}', UserState.VALID),
        ('"session":{"safety_identifier":"a","safety_identifier":""}', UserState.EMPTY),
        ('"session":{"safety_identifier":"a"},"session":{}', UserState.ABSENT),
        ('"safety_identifier":"a"', UserState.ABSENT),
        ('"session":null,"safety_identifier":"a"', UserState.ABSENT),
    ],
)
def test_an_identifier_in_a_session(members: str, expected: UserState) -> None:
    """Where an endpoint has its safety_identifier in a session, that one alone counts."""
    body = f"{{{members}}}".encode()
    assert read_body(body, "", "", LIVE).safety_identifier.state is expected


SESSIONS = {
    '"session":{"model":"a"}': (ModelState.GIVEN, "a"),
    '"session":{"model":"a"},"model":"a"': (ModelState.GIVEN, "a"),
    '"session":{"model":"a"},"model":"b"': (ModelState.CONFLICTING, "b"),
    '"session":{"model":"a","model":"b"}': (ModelState.CONFLICTING, "b"),
    '"session":{"model":"a"},"session":{"model":"b"}': (ModelState.CONFLICTING, "b"),
    '"session":{"Model":"a"}': (ModelState.CONFLICTING, ""),
    '"Session":{"model":"a"}': (ModelState.CONFLICTING, ""),
    '"session":{"model":["a"]}': (ModelState.NOT_STRING, ""),
    '"session":{"type":"realtime"}': (ModelState.ABSENT, ""),
    '"session":{"type":"realtime"},"model":"a"': (ModelState.GIVEN, "a"),
    '"session":"a"': (ModelState.ABSENT, ""),
}


@pytest.mark.parametrize("members", SESSIONS)
def test_the_model_of_a_session(members: str) -> None:
    """The model of a realtime session is the request's."""
    found = read(members)
    assert (found.model_state, found.model) == SESSIONS[members]


@pytest.mark.parametrize(
    ("session", "state", "model"),
    [
        (b'{"type":"realtime","model":"a"}', ModelState.GIVEN, "a"),
        (b'{"type":"realtime"}', ModelState.ABSENT, ""),
        (b'{"model":"a"', ModelState.NOT_STRING, ""),
        (b"\xef\xbb\xbf{}", ModelState.NOT_STRING, ""),
        (b'{"Model":"a"}', CONFLICTING, ""),
        (b'{"model":"a","Model":"b"}', CONFLICTING, "a"),
    ],
)
def test_the_model_of_a_session_in_a_form(session: bytes, state: ModelState, model: str) -> None:
    """A call's form has its session as JSON. One that cannot be read may name any model."""
    found = read_form(('name="session"', session), ('name="sdp"', b"v=0"))
    assert (found.model_state, found.model) == (state, model)
    assert found.user.state is UserState.ABSENT


@pytest.mark.parametrize("name", ["session[]", "Session", "%73ession"])
def test_a_session_that_only_some_servers_find(name: str) -> None:
    """A session by a name that only some servers take for it makes the model uncertain."""
    found = read_form((f'name="{name}"', b'{"model":"a"}'))
    assert (found.model_state, found.model) == (CONFLICTING, "")


def test_nothing_is_unknown_of_a_body_that_was_read() -> None:
    """Everything is known of a body that was read, and nothing of other bodies."""
    offer = read_body(b"v=0", "application/sdp", "", CALLS)
    for attributes in (read(""), read_form(('name="x"', b"")), offer):
        assert attributes.model_state is not ModelState.UNKNOWN
        assert UNKNOWN_NUMBER not in attributes
    unreadable = read('"user"')
    for attributes in (NOT_READ, unreadable):
        assert attributes.model_state is ModelState.UNKNOWN
        assert attributes[4:7] == (UNKNOWN_NUMBER,) * 3
    assert [place for place, _ in unreadable.others] == list(FURTHER_PLACES)
    assert {found for _, found in unreadable.others} == {unreadable.user}


def test_the_bound_of_numbers() -> None:
    """A number above the bound counts as the bound, whatever stands before its digits."""
    assert stated.MOST == 10**15
    assert stated.value(b"0" * MANY + b"12") == 12
    assert stated.value(b"0" * MANY) == 0
    assert stated.value(b"1" + b"0" * MANY) == stated.MOST
