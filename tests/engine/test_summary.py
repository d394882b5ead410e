"""The explanation of a decision, beside the decision tables: by a table of other policies."""

from dataclasses import replace

from policyd.engine import endpoints
from policyd.engine.decision import decide
from policyd.engine.model import DecisionInput
from policyd.engine.places import USER, EndUser
from policyd.engine.policy import Table
from policyd.engine.settings import KeySettings
from policyd.engine.states import Credential, UserState
from policyd.policies import TABLE


def test_a_table_without_observation() -> None:
    """Where the first policy observes nothing of a request, it is allowed without a reason."""
    original = replace(TABLE.original, observe=None)
    others = [policy for policy in TABLE.policies if policy.name != original.name]
    target = endpoints.resolve("POST", "/v1/embeddings")
    named = (EndUser(USER, UserState.VALID, "ada"),)
    given = DecisionInput(target, Credential.GIVEN, "k", end_users=named)
    decision = decide(Table([original, *others]), given, KeySettings("key_1", ()))
    assert decision.explanation.summary.startswith("Allowed. ")
