"""What holds for every input, tested with hypothesis."""

import gzip
import json

from hypothesis import example, given
from hypothesis import strategies as st

from policyd.descriptor.body import read_body
from policyd.engine import endpoints
from policyd.engine.denial import AMBIGUOUS_PATH
from policyd.engine.endpoints import ENDPOINTS
from policyd.engine.model import DecisionInput
from policyd.engine.places import IDENTIFIERS, EndUser, Target
from policyd.engine.settings import KeySettings
from policyd.engine.states import Credential, Mode, Override, Source, UserState
from policyd.policies import TABLE, decide
from tests.support.codings import COMPRESS

IN_SCOPE = Target(in_scope=True)
modes = st.sampled_from(Mode)
overrides = st.lists(st.one_of(st.sampled_from(["true", "false", "1", ""]), st.text())).map(tuple)
accepts = st.sampled_from([("user",), ("safety_identifier",), ("user", "safety_identifier")])
settings = st.builds(
    KeySettings,
    st.just("key_1"),
    st.builds(TABLE.with_original, st.none() | modes, st.sampled_from(Override)),
    accepts,
)
HEADER = TABLE.original.header
targets = st.builds(endpoints.resolve, st.sampled_from(["", "POST", "GET"]), st.text()) | (
    st.sampled_from([endpoints.resolve("POST", "/v1" + path) for path in ENDPOINTS])
    | st.just(endpoints.resolve("POST", "/v1/%2563hat/completions"))
)
descriptors = st.builds(
    DecisionInput,
    targets,
    st.sampled_from(Credential),
    st.text(),
    overrides.map(lambda values: tuple((HEADER, value) for value in values)),
    st.tuples(
        *(st.builds(EndUser, st.just(one), st.sampled_from(UserState)) for one in IDENTIFIERS)
    ),
)


@given(descriptors, st.none() | settings, modes)
def test_every_request_is_decided(
    described: DecisionInput, key: KeySettings | None, default: Mode
) -> None:
    """decide() is total, and its decision does not contradict itself."""
    decision = decide(described, key, TABLE.with_original(default))
    why = decision.explanation
    assert not (decision.denial and decision.would_deny)
    if key is None:
        assert decision.denial is not None
        assert decision.denial.status == 403
    elif described.target.is_ambiguous:
        assert decision.denial is AMBIGUOUS_PATH
        assert why.in_scope
    elif decision.denial:
        assert why.mode is Mode.ENFORCE
        assert why.in_scope
        assert why.user_state is not UserState.VALID
        assert decision.denial.status in (400, 413, 415, 422)
    elif why.in_scope and why.user_state is not UserState.VALID:
        assert why.mode is not Mode.ENFORCE


@given(descriptors, settings, modes)
def test_deciding_twice_gives_the_same(
    described: DecisionInput, key: KeySettings, default: Mode
) -> None:
    """decide() is pure."""
    defaults = TABLE.with_original(default)
    assert decide(described, key, defaults) is decide(described, key, defaults)


@given(overrides, modes, accepts)
def test_no_header_changes_a_locked_key(
    values: tuple[str, ...], mode: Mode, accept: tuple[str, ...]
) -> None:
    """A locked key's mode holds, whatever the headers are."""
    key = KeySettings("key_1", TABLE.with_original(mode, Override.LOCKED), accept)
    why = decide(_without_user(values), key).explanation
    assert (why.mode, why.source) == (mode, Source.KEY)


@given(overrides, modes)
def test_no_header_weakens_a_key_that_may_only_be_tightened(
    values: tuple[str, ...], mode: Mode
) -> None:
    """With tighten_only, the mode in force is never weaker than the key's."""
    key = KeySettings("key_1", TABLE.with_original(mode, Override.TIGHTEN_ONLY))
    why = decide(_without_user(values), key).explanation
    assert why.mode is not None
    assert why.mode >= mode


@given(overrides, modes)
def test_only_a_clear_false_weakens_a_key(values: tuple[str, ...], mode: Mode) -> None:
    """With override `any`, only headers that are all false make the mode weaker."""
    why = decide(_without_user(values), KeySettings("key_1", TABLE.with_original(mode))).explanation
    assert why.mode is not None
    if {value.strip(" \t").lower() for value in values} != {"false"}:
        assert why.mode >= mode


def _without_user(values: tuple[str, ...]) -> DecisionInput:
    overrides = tuple((HEADER, value) for value in values)
    absent = tuple(EndUser(place, UserState.ABSENT) for place in IDENTIFIERS)
    return DecisionInput(IN_SCOPE, Credential.GIVEN, "k", overrides, absent)


PIECES = (
    *(b"{", b"}", b'"', b":", b",", b" ", b"user", b'"user"', b'"u-1"', b"null", b"\\u0075ser"),
    *(b'{"user":"u-1"}', b'{"safety_identifier":"u-1"}', b'{"model":"m"}', b"[]", b"\xff"),
    *(b"--x\r\n", b"--x--\r\n", b'Content-Disposition: form-data; name="user"\r\n\r\nu-1\r\n'),
)
bodies = st.binary() | st.lists(st.sampled_from(PIECES)).map(b"".join)


@given(bodies, st.sampled_from(["", *COMPRESS]), st.text(), st.text())
@example(b'{"user":"u-1"}', "gzip", "", "")
@example(b"--x\r\n" + PIECES[-1] + b"--x--\r\n", "br", "", "")
def test_every_body_is_read(plain: bytes, coding: str, content_type: str, name: str) -> None:
    """read_body() is total: any bytes get a state.

    It is a user's only if the body names a user and is encoded as its header declares.
    """
    form = endpoints.ENDPOINTS["/images/edits"]
    body = COMPRESS[coding](plain) if coding else plain
    for kind in (content_type, "application/json", "multipart/form-data; boundary=x"):
        for named in ("", *COMPRESS, name):
            user = read_body(body, kind, named, form, limit=1000).user
            assert user.state is not UserState.UNKNOWN
            if user.state is UserState.VALID:
                claimed = {one.strip(" \t").lower().removeprefix("x-") for one in named.split(",")}
                assert claimed - {"", "identity"} == {coding} - {""}
                assert b"user" in plain or b"\\u" in plain


characters = st.characters(exclude_categories=["Cs"])  # Half a surrogate pair is not Unicode.
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(characters),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(characters), inner),
    max_leaves=10,
)


@given(
    st.lists(st.tuples(st.sampled_from([*IDENTIFIERS, "model", "messages"]), values), max_size=6),
    st.booleans(),
)
def test_repeats_are_judged_by_the_worst(members: list[tuple[str, object]], compress: bool) -> None:
    """A repeated user is as good as its worst occurrence."""
    text = "{" + ",".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in members) + "}"
    body = gzip.compress(text.encode()) if compress else text.encode()
    attributes = read_body(body, "application/json", "gzip" if compress else "", None)
    alone = [
        read_body(json.dumps({"user": value}).encode(), "", "", None).user.state
        for name, value in members
        if name == "user"
    ]
    assert attributes.user.state == max(alone, default=UserState.ABSENT)


heads = st.lists(
    st.sampled_from(
        [
            "Content-Disposition: form-data",
            'Content-Disposition: form-data; name="user"',
            'Content-Disposition: form-data; name="user"; filename="a"',
            "Content-Disposition: form-data; name",
            "Content-Disposition:",
            "Content-Disposition: form-data;",
            "Content-Type: text/plain; charset=utf-7",
            "Content-Type:",
            "Content-Length: 1",
            "",
        ]
    )
    | st.text(max_size=20),
    max_size=3,
).map("\r\n".join)
parts = st.tuples(heads, st.sampled_from(["\r\n\r\n", "\r\n", "\n\n"]), st.text(max_size=5))


@given(st.lists(parts.map("".join), max_size=3), st.sampled_from(["--x--\r\n", "--x--", "--x", ""]))
def test_every_form_is_read(bodies: list[str], end: str) -> None:
    """A form gets a state, whatever its parts look like."""
    body = "".join(f"--x\r\n{part}\r\n" for part in bodies) + end
    kind = "multipart/form-data; boundary=x"
    attributes = read_body(
        body.encode("utf-8", "surrogatepass"), kind, "", endpoints.ENDPOINTS["/images/edits"]
    )
    assert attributes.user.state in UserState
    assert attributes.user.state is not UserState.UNKNOWN
