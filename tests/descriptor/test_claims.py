"""What callers claim in a descriptor, beside what its raw body holds: the worst counts."""

import re
from typing import Any

import pytest

from policyd.descriptor.evaluate_request import read
from policyd.descriptor.stated import MOST
from policyd.engine.places import SAFETY_IDENTIFIER, USER, EndUser
from policyd.engine.states import ModelState, Number, NumberState, UserState
from policyd.errors import InvalidDescriptor
from policyd.v1 import policy_pb2 as pb

VALID, ABSENT, DUPLICATE = UserState.VALID, UserState.ABSENT, UserState.DUPLICATE
GIVEN, INVALID, NONE = NumberState.GIVEN, NumberState.INVALID, NumberState.ABSENT
ASKED: dict[str, Any] = {"has_user": True, "method": "POST", "path": "/v1/chat/completions"}


def asked(body: str = "", headers: tuple[str, ...] = (), **fields: Any) -> pb.EvaluateRequest:
    """A descriptor of a chat completion with a user, and `fields`."""
    message = pb.EvaluateRequest(**ASKED | fields)
    if body:
        message.raw_body.content = body.encode()
    for line in headers:
        name, _, value = line.partition(": ")
        message.headers.add(name=name, value=value)
    return message


@pytest.mark.parametrize(
    ("message", "number"),
    [
        (asked(), Number(NumberState.UNKNOWN)),
        (asked(token_limit=7), Number(GIVEN, 7)),
        (asked(token_limit=0), Number(GIVEN, 0)),
        (asked(token_limit=-1), Number(INVALID)),
        (asked(token_limit=7, choices=3), Number(GIVEN, 21)),
        (asked(token_limit=7, choices=1), Number(GIVEN, 7)),
        (asked(token_limit=7, choices=0), Number(INVALID)),
        (asked(token_limit=7, choices=-1), Number(INVALID)),
        (asked(token_limit=2**62, choices=2**62), Number(GIVEN, MOST)),
        (asked(token_limit_state=pb.NUMBER_STATE_ABSENT), Number(NONE)),
        (asked(token_limit_state=pb.NUMBER_STATE_ABSENT, choices=3), Number(NONE)),
        (asked(token_limit_state=pb.NUMBER_STATE_INVALID), Number(INVALID)),
        (asked(token_limit=7, token_limit_state=pb.NUMBER_STATE_INVALID), Number(INVALID)),
        (asked(token_limit=7, token_limit_state=pb.NUMBER_STATE_ABSENT), Number(GIVEN, 7)),
        # A number that is given stands in the field; without it nothing is known.
        (asked(token_limit_state=pb.NUMBER_STATE_GIVEN), Number(NumberState.UNKNOWN)),
        (asked('{"max_tokens":9}'), Number(GIVEN, 9)),
        (asked('{"max_tokens":9,"n":2}'), Number(GIVEN, 18)),
        (asked('{"max_tokens":9}', token_limit=7), Number(GIVEN, 9)),
        (asked('{"max_tokens":9}', token_limit=70), Number(GIVEN, 70)),
        (asked('{"max_tokens":9}', choices=3), Number(GIVEN, 27)),
        (asked('{"max_tokens":9,"n":5}', choices=3), Number(GIVEN, 45)),
        (asked("{}", token_limit=7), Number(NONE)),
        (asked("{}"), Number(NONE)),
        (asked('{"max_tokens":"9"}', token_limit=7), Number(INVALID)),
    ],
)
def test_the_token_limit(message: pb.EvaluateRequest, number: Number) -> None:
    """The limit is the larger one that is claimed, times the larger number of choices."""
    assert read(message).decision_input.token_limit == number


@pytest.mark.parametrize(
    ("message", "number"),
    [
        (asked(), Number(NumberState.UNKNOWN)),
        (asked(prompt_characters=7), Number(GIVEN, 7)),
        (asked(prompt_characters=-7), Number(INVALID)),
        (asked(prompt_characters_state=pb.NUMBER_STATE_ABSENT), Number(NONE)),
        (asked(prompt_characters_state=pb.NUMBER_STATE_INVALID), Number(INVALID)),
        (asked('{"prompt":"Hello"}', prompt_characters=3), Number(GIVEN, 5)),
        (asked('{"prompt":"Hello"}', prompt_characters=8), Number(GIVEN, 8)),
    ],
)
def test_the_prompt(message: pb.EvaluateRequest, number: Number) -> None:
    """The prompt has as many characters as the larger number that is claimed."""
    assert read(message).decision_input.prompt_chars == number


@pytest.mark.parametrize(
    ("message", "state", "model"),
    [
        (asked(), ModelState.UNKNOWN, ""),
        (asked(model="m"), ModelState.GIVEN, "m"),
        (asked(model="m" * 256), ModelState.GIVEN, "m" * 256),
        (asked(model="m" * 257), ModelState.TOO_LONG, ""),
        (asked(model_state=pb.MODEL_STATE_ABSENT), ModelState.ABSENT, ""),
        (asked(model="m", model_state=pb.MODEL_STATE_ABSENT), ModelState.GIVEN, "m"),
        (asked('{"model":"m"}', model_state=pb.MODEL_STATE_ABSENT), ModelState.GIVEN, "m"),
        (asked("{}", model="m"), ModelState.GIVEN, "m"),
        (asked(model="m", model_state=pb.MODEL_STATE_CONFLICTING), ModelState.CONFLICTING, ""),
        (asked('{"model":"m"}'), ModelState.GIVEN, "m"),
        (asked('{"model":"m"}', model="m"), ModelState.GIVEN, "m"),
        (asked('{"model":"m"}', model="o"), ModelState.CONFLICTING, ""),
        (asked('{"model":1}', model="o"), ModelState.NOT_STRING, ""),
        (asked("{}"), ModelState.ABSENT, ""),
    ],
)
def test_the_model(message: pb.EvaluateRequest, state: ModelState, model: str) -> None:
    """A model counts where all that is claimed of it agrees."""
    found = read(message).decision_input
    assert (found.model_state, found.model) == (state, model)


PLACE = "metadata.user_id"
HEADER = "header:x-person"
METADATA = '{"metadata":{"user_id":"u"}}'


def named(place: str, *values: str) -> list[pb.EndUser]:
    """A claim about the place for each of these values."""
    return [pb.EndUser(place=place, value=value) for value in values]


@pytest.mark.parametrize(
    ("message", "trusted", "found"),
    [
        (asked(end_users=[pb.EndUser(place=PLACE, value="u")]), (), EndUser(PLACE, VALID, "u")),
        (
            asked(end_users=[pb.EndUser(place=PLACE, state=pb.USER_STATE_ABSENT)]),
            (),
            EndUser(PLACE, ABSENT),
        ),
        (
            asked(
                end_users=[
                    pb.EndUser(place=PLACE, value="u"),
                    pb.EndUser(place=PLACE, state=pb.USER_STATE_ABSENT),
                ]
            ),
            (),
            EndUser(PLACE, ABSENT, "u"),
        ),
        (
            asked(
                end_users=[
                    pb.EndUser(place=PLACE, state=pb.USER_STATE_ABSENT),
                    pb.EndUser(place=PLACE, value="u"),
                ]
            ),
            (),
            EndUser(PLACE, ABSENT, "u"),
        ),
        (
            asked(
                end_users=[
                    pb.EndUser(place=PLACE, state=pb.USER_STATE_VALID),
                    pb.EndUser(place=PLACE),
                ]
            ),
            (),
            EndUser(PLACE, VALID),
        ),
        (asked(headers=("X-Person: u",)), (), None),
        (asked(headers=("X-Person: u",)), ("x-person",), EndUser("header:x-person", VALID, "u")),
        (
            asked(headers=("X-Person: u", "x-person: u")),
            ("x-person",),
            EndUser("header:x-person", VALID, "u"),
        ),
        (
            asked(headers=("X-Person: u", "x-person: v")),
            ("x-person",),
            EndUser("header:x-person", DUPLICATE),
        ),
        (asked(end_users=[pb.EndUser(place="header:x-person", value="u")]), (), None),
        (asked(end_users=named(HEADER, "u", "u")), ("x-person",), EndUser(HEADER, VALID, "u")),
        (asked(end_users=named(HEADER, "u", "v")), ("x-person",), EndUser(HEADER, DUPLICATE)),
        (asked(end_users=named(PLACE, "u", "v")), (), EndUser(PLACE, VALID, "u", ("v",))),
        (asked(METADATA, end_users=named(PLACE, "v")), (), EndUser(PLACE, VALID, "u", ("v",))),
        (asked(METADATA, end_users=named(PLACE, " ")), (), EndUser(PLACE, UserState.BLANK, "u")),
        (asked('{"metadata":{"user_id":" "}}'), (), EndUser(PLACE, UserState.BLANK)),
        (asked(end_users=named(PLACE, " ")), (), EndUser(PLACE, UserState.BLANK)),
    ],
)
def test_further_places(
    message: pb.EvaluateRequest, trusted: tuple[str, ...], found: EndUser | None
) -> None:
    """A further place counts as the worst that is claimed; that of a header only if trusted."""
    users = read(message, trusted=frozenset(trusted)).decision_input.end_users
    place = found.place if found else "header:x-person"
    assert [one for one in users if one.place == place] == ([found] if found else [])


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (asked(), EndUser("user", VALID)),
        (asked(user="u"), EndUser("user", VALID, "u")),
        (asked('{"user":"u"}'), EndUser("user", VALID, "u")),
        # The body goes upstream, so the value that it has comes first.
        (asked('{"user":"u"}', user="v"), EndUser("user", VALID, "u", ("v",))),
        (asked('{"user":"u","user":"v"}', user="u"), EndUser("user", VALID, "u", ("v",))),
        (
            asked(user="u", end_users=named(USER, "v", "u", "w")),
            EndUser("user", VALID, "u", ("v", "w")),
        ),
        (asked(end_users=named(USER, "u")), EndUser("user", VALID, "u")),
        (
            asked(end_users=[pb.EndUser(place=USER, state=pb.USER_STATE_VALID)]),
            EndUser("user", VALID),
        ),
        (asked(user="u", end_users=named(USER, " ")), EndUser("user", UserState.BLANK, "u")),
        (asked(user=" ", end_users=named(USER, "u")), EndUser("user", UserState.BLANK, "u")),
        (asked(end_users=named(USER, *"abcdefgh")), EndUser("user", VALID, "a", tuple("bcdefgh"))),
        (asked(end_users=named(USER, *"abcdefghi")), EndUser("user", DUPLICATE)),
        (
            asked(safety_identifier="u", end_users=named(SAFETY_IDENTIFIER, "v")),
            EndUser("safety_identifier", VALID, "u", ("v",)),
        ),
        (asked('{"user":"u"}', has_user=False), EndUser("user", ABSENT, "u")),
        (asked('{"user":"u"}', user=""), EndUser("user", UserState.EMPTY, "u")),
        (asked("{}", user="u"), EndUser("user", ABSENT, "u")),
        (
            asked(safety_identifier="u" * 128),
            EndUser("safety_identifier", VALID, "u" * 128),
        ),
        (
            asked("{}", safety_identifier="u" * 129),
            EndUser("safety_identifier", UserState.TOO_LONG, "u" * 129),
        ),
    ],
)
def test_the_first_places(message: pb.EvaluateRequest, found: EndUser) -> None:
    """The worst that is claimed of a place counts, with the values of all claims."""
    users = read(message).decision_input.end_users
    assert [one for one in users if one.place == found.place] == [found]


def test_nothing_is_known() -> None:
    """A request in scope of which nothing is claimed is an error; out of scope, it is none."""
    message = pb.EvaluateRequest(method="POST", path="/v1/chat/completions")
    with pytest.raises(InvalidDescriptor, match="set has_user, user_state or user, or send the"):
        read(message)
    message.path = "/v1/other"
    assert read(message).decision_input.end_users == ()


def test_a_header_beside_a_body_that_cannot_be_read() -> None:
    """A trusted header does not make up for a body that cannot be read."""
    message = asked("{", headers=("X-Person: u",))
    message.ClearField("has_user")
    found = read(message, trusted=frozenset({"x-person"})).decision_input
    states = {one.place: one.state for one in found.end_users}
    assert states.keys() >= {"header:x-person", "user", "safety_identifier"}
    assert set(states.values()) == {UserState.NOT_JSON}
    assert {one.value for one in found.end_users} == {None}
    assert found.unreadable is UserState.NOT_JSON


def test_a_place_that_a_body_does_not_have() -> None:
    """A caller that has read the body need not name the places that it does not have."""
    place = "user_security_context.end_user_id"
    for message, states in (
        (asked(), []),
        (asked("{}"), [ABSENT]),
        (asked(model_state=pb.MODEL_STATE_ABSENT), [ABSENT]),
        (asked(model_state=pb.MODEL_STATE_ABSENT, path="/v1/embeddings"), []),
        (
            asked(
                model_state=pb.MODEL_STATE_ABSENT, end_users=[pb.EndUser(place=place, value="u")]
            ),
            [VALID],
        ),
    ):
        users = read(message).decision_input.end_users
        assert [one.state for one in users if one.place == place] == states


def test_the_endpoints_own_header() -> None:
    """Sessions of the realtime API take the safety identifier in a header."""
    header = "OpenAI-Safety-Identifier: u"
    there = pb.EvaluateRequest(method="POST", path="/v1/realtime/sessions")
    for path, is_known in ((there.path, True), ("/v1/responses", False)):
        message = asked(headers=(header,), path=path)
        users = read(message).decision_input.end_users
        known = [one for one in users if one.place == "safety_identifier" and one.state is VALID]
        assert bool(known) == is_known


@pytest.mark.parametrize(
    ("fields", "name", "kind"),
    [
        ({"user_state": 99}, "user_state", "UserState"),
        ({"safety_identifier_state": 99}, "safety_identifier_state", "UserState"),
        ({"model_state": 99}, "model_state", "ModelState"),
        ({"model_state": len(pb.ModelState.keys())}, "model_state", "ModelState"),
        ({"token_limit_state": 99}, "token_limit_state", "NumberState"),
        ({"token_limit_state": 99, "token_limit": 7}, "token_limit_state", "NumberState"),
        (
            {"token_limit_state": len(pb.NumberState.keys())},
            "token_limit_state",
            "NumberState",
        ),
        ({"prompt_characters_state": 99}, "prompt_characters_state", "NumberState"),
    ],
)
def test_numbers_of_no_member(fields: dict[str, Any], name: str, kind: str) -> None:
    """A number that the protos do not know is an error that names the field and its values."""
    number = fields[name]
    message = f"{name} has no value {number}: see {kind} in policy.proto"
    with pytest.raises(InvalidDescriptor, match=f"^{re.escape(message)}$"):
        read(asked(**fields))


SEE_END_USER = "see EndUser in policy.proto"


@pytest.mark.parametrize(
    ("end_user", "error"),
    [
        (
            pb.EndUser(place="users", value="u"),
            f"end_users cannot name the place 'users': {SEE_END_USER}",
        ),
        (
            pb.EndUser(place="m" * 81, value="u"),
            f"end_users cannot name the place '{'m' * 80}': {SEE_END_USER}",
        ),
        (
            pb.EndUser(place=PLACE, state=99),  # type: ignore[arg-type]  # It is no member.
            "end_users.state has no value 99: see UserState in policy.proto",
        ),
    ],
)
def test_malformed_end_users(end_user: pb.EndUser, error: str) -> None:
    """An end user in a place or a state that the protos do not know is an error."""
    with pytest.raises(InvalidDescriptor, match=f"^{re.escape(error)}$"):
        read(asked(end_users=[end_user]))
