"""What the log keeps of any request can be read back, and is enough to decide once more."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policyd.decider import log_entries
from policyd.decision_log import inputs, results
from policyd.decision_log.record import MAX_RESULTS, MAX_SUMMARY, Record
from policyd.decision_log.refused_key import RefusedKey
from policyd.descriptor import evaluate_request
from policyd.engine.model import Decision, Explanation, Flag, Result, Violation
from policyd.engine.settings import KeySettings, Setting, Settings
from policyd.engine.states import Ignored, Mode, Number, NumberState, Override, Source, UserState
from policyd.errors import InvalidDescriptor
from policyd.policies import TABLE, decide
from policyd.v1 import policy_pb2 as pb
from tests.support import examples

_ID = "019a0000000000000000000000000001"
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
_long = st.builds(lambda text, times: text * times, _texts, st.sampled_from([1, 200, 2000]))
_numbers = st.sampled_from([0, 1, 500, 2**62, -1])
_headers = st.lists(
    st.builds(
        pb.Header,
        name=st.sampled_from([*TABLE.by_header, "x-trace-id", "content-type"]),
        value=st.sampled_from(["true", "false", "0", "5", "1e3", "9" * 300]) | _long,
    ),
    max_size=6,
)
_places = st.builds(
    pb.EndUser,
    place=st.sampled_from(["metadata.user_id", "user_security_context.end_user_id"]),
    state=st.integers(0, 14),
    value=st.none() | _long,
)
_bodies = st.builds(
    pb.RawBody,
    content=st.sampled_from(
        [b"{}", b"x", b'{"user":"\\ud800"}', b'{"model":"\\udfff","n":1e9,"max_tokens":1e15}']
    ),
)
_descriptors = st.builds(
    pb.EvaluateRequest,
    method=st.sampled_from(["POST", "GET"]) | _long,
    path=st.sampled_from(
        [
            "/v1/chat/completions?x=1",
            "/v1/messages",
            "/v1/images/generations",
            "/openai/deployments/d",
        ]
    )
    | _long,
    headers=_headers,
    **{
        name: st.none() | values
        for name, values in (
            *((name, _long) for name in ("user", "safety_identifier", "model", "source_ip")),
            *((name, _long) for name in ("user_agent", "organization", "request_id", "trace_id")),
            *((name, _numbers) for name in ("token_limit", "choices", "prompt_characters")),
            ("has_user", st.booleans()),
            ("user_state", st.integers(0, 14)),
            ("model_state", st.integers(0, 5)),
            ("raw_body", _bodies),
        )
    },
    end_users=st.lists(_places, max_size=3),
)
_values = {
    "max_tokens": ["1", "500"],
    "max_prompt_chars": ["1", "500"],
    "user_format": ["min=3,no_email"],
    "disabled_models": [",".join(f"model-{n}-{'x' * 200}*" for n in range(300)), "*"],
    "allowed_models": ["gpt-*"],
    "allowed_operations": ["embedding"],
    TABLE.original.name: [""],
    "of_a_newer_version": ["x" * 5000],
}


@st.composite
def _settings(draw: st.DrawFn) -> Settings:
    chosen = draw(st.sets(st.sampled_from(sorted(_values))))
    made = {
        name: Setting(
            draw(st.sampled_from(Mode)),
            draw(st.sampled_from(_values[name])),
            draw(st.none() | st.sampled_from(Override)),
        )
        for name in chosen
    }
    return TABLE.in_order(made.items())


def _logged(
    request: pb.EvaluateRequest, policies: Settings
) -> tuple[evaluate_request.Reading, Record] | None:
    try:
        reading = evaluate_request.read(request)
    except InvalidDescriptor:
        return None
    decision = decide(reading.decision_input, KeySettings("key_1", policies))
    response = pb.EvaluateResponse(decision_id=_ID, api_key_id="key_1", revision=7)
    entry = log_entries.record(request, reading, decision, response)
    assert isinstance(entry, Record)
    return reading, entry


@settings(max_examples=examples.times(4))
@given(_descriptors, _settings())
def test_every_record_is_read_back(request: pb.EvaluateRequest, policies: Settings) -> None:
    """A record of any request, by any settings, is within the bounds that its readers check."""
    if logged := _logged(request, policies):
        _, entry = logged
        assert msgspec.json.decode(msgspec.json.encode(entry), type=Record) == entry
        assert {one.policy for one in results.of(entry)} >= {TABLE.original.name}


@settings(max_examples=examples.times(2))
@given(_descriptors)
def test_every_refused_key_is_read_back(request: pb.EvaluateRequest) -> None:
    """An entry about a request without a key in force is read back as it was written."""
    try:
        reading = evaluate_request.read(request)
    except InvalidDescriptor:
        return
    decision = decide(reading.decision_input, None)
    entry = log_entries.record(request, reading, decision, pb.EvaluateResponse(decision_id=_ID))
    assert msgspec.json.decode(msgspec.json.encode(entry), type=RefusedKey) == entry


@settings(max_examples=examples.times(2))
@given(_descriptors)
def test_what_a_simulation_needs_is_kept(request: pb.EvaluateRequest) -> None:
    """The numbers, the states and the overrides of a record are those that were decided on."""
    if not (logged := _logged(request, ())):
        return
    reading, entry = logged
    given = reading.decision_input
    assert inputs.read_number(entry.token_limit) == given.token_limit
    assert inputs.read_number(entry.prompt_chars) == given.prompt_chars
    assert entry.model_state is given.model_state
    found = inputs.read_overrides(entry.overrides, entry.header_overrides)
    assert {header for header, _ in found} == {header for header, _ in given.overrides}
    places = {one.place for one in given.end_users} - {"user", "safety_identifier"}
    assert inputs.read_place_states(entry.end_users).keys() == places


def _decision(flags: tuple[Flag, ...], results: tuple[Result, ...]) -> Decision:
    why = Explanation(
        Mode.ENFORCE,
        Source.KEY,
        Ignored.NOT_IGNORED,
        True,
        "response",
        UserState.VALID,
        "user",
        "x" * 900,
    )
    return Decision(None, False, flags, why, results)


def test_each_text_has_its_place() -> None:
    """No field of a record has what belongs to another."""
    request = pb.EvaluateRequest(
        method="POST",
        path="/v1/embeddings?x=1",
        user="ada",
        model="m-1",
        source_ip="192.0.2.1",
        user_agent="agent/1",
        organization="org-1",
        request_id="request-1",
        trace_id="trace-1",
        token_limit=5,
        prompt_characters=6,
    )
    logged = _logged(request, ())
    assert logged is not None
    found = logged[1]
    assert (found.id, found.key_id, found.revision, found.operation) == (
        _ID,
        "key_1",
        7,
        "embedding",
    )
    assert (found.method, found.path, found.model) == ("POST", "/v1/embeddings", "m-1")
    assert (found.end_user, found.source_ip, found.user_agent) == ("ada", "192.0.2.1", "agent/1")
    assert (found.organization, found.request_id) == ("org-1", "request-1")
    assert (found.trace_id, found.token_limit, found.prompt_chars) == ("trace-1", 5, 6)
    assert (found.sample, found.outcome) == (False, None)


def test_more_than_a_record_holds() -> None:
    """Flags and results are left out as a whole where there are too many; other texts are cut."""
    flags = tuple(Flag(f"policy_{number:02}_{'x' * 90}", "") for number in range(8))
    made = [
        Result(
            f"policy_{number}",
            Mode.AUDIT,
            "v" * 9000,
            Source.KEY,
            Override.ANY,
            Ignored.NOT_IGNORED,
            Violation("m" * 9000, ""),
        )
        for number in range(60)
    ]
    outline = log_entries._outline(_decision(flags, tuple(made)))
    assert outline.flags == ",".join(flag.type for flag in flags[:4])
    assert (len(outline.summary), outline.summary[-1]) == (MAX_SUMMARY, "…")
    assert len(outline.results) <= MAX_RESULTS
    found = msgspec.json.decode(outline.results)
    assert 10 < len(found) < 60
    assert found[0] == ["policy_0", 2, "v" * 299 + "…", 2, 0, "m" * 299 + "…"]


@pytest.mark.parametrize(
    ("number", "kept"),
    [
        (Number(NumberState.UNKNOWN), None),
        (Number(NumberState.ABSENT), -1),
        (Number(NumberState.INVALID), -2),
        (Number(NumberState.GIVEN, 0), 0),
        (Number(NumberState.GIVEN, 10**15), 10**15),
    ],
)
def test_numbers(number: Number, kept: int | None) -> None:
    """A number is kept as one, or as what stands for its state."""
    assert inputs.number(number) == kept
    assert inputs.read_number(kept) == number
