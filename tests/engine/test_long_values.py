"""A setting may be long. What policyd keeps of it for each request is short."""

from policyd.decision_log.inputs import override_texts
from policyd.descriptor import evaluate_request
from policyd.engine import endpoints
from policyd.engine.model import MAX_TOLD, DecisionInput, cut
from policyd.engine.places import USER, EndUser, Target
from policyd.engine.plan import overridden
from policyd.engine.settings import KeySettings, Setting
from policyd.engine.states import Credential, Mode, ModelState, Number, NumberState, UserState
from policyd.policies import decide

LIST = ",".join(f"model-{number}-{'x' * 200}" for number in range(1000))
NOWHERE = Target(in_scope=False)
KEY = KeySettings("key", (("allowed_models", Setting(Mode.ENFORCE, LIST)),))


def test_what_is_cut() -> None:
    """A text is cut only if it is longer than may be, and then an ellipsis ends it."""
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "ab…"


def test_a_long_list_of_models() -> None:
    """Neither an explanation nor an answer repeats a list of a thousand models."""
    given = DecisionInput(
        endpoints.resolve("POST", "/v1/chat/completions"),
        Credential.GIVEN,
        "key",
        end_users=(EndUser(USER, UserState.VALID, "alice"),),
        model_state=ModelState.GIVEN,
        model="gpt-4",
    )
    decision = decide(given, KEY)
    assert decision.denial
    answer = evaluate_request.answer(decision)
    told = next(one.value for one in answer.results if one.policy == "allowed_models")
    assert len(told) == MAX_TOLD
    assert LIST.startswith(told[:-1])
    assert told[:-1] in answer.explanation.summary
    assert answer.ByteSize() < 5 * MAX_TOLD


def test_many_values_of_a_header() -> None:
    """Many values of a header are judged like a few, and not kept."""
    name = "x-usagepanda-max-tokens"
    given = tuple((name, str(number)) for number in range(7, 2000))
    decision = decide(
        DecisionInput(
            endpoints.resolve("POST", "/v1/chat/completions"),
            Credential.GIVEN,
            "key",
            given,
            (EndUser(USER, UserState.VALID, "alice"),),
            token_limit=Number(NumberState.GIVEN, 8),
        ),
        KeySettings("key"),
    )
    assert decision.denial
    assert b"max tokens of: 7; request was: 8" in decision.denial.body
    kept = overridden.cache_info().currsize
    assert override_texts(given).others == "?"
    decide(DecisionInput(NOWHERE, Credential.GIVEN, "key", given), KeySettings("key"))
    assert overridden.cache_info().currsize == kept
