"""Endpoints that are in scope for some keys alone, on the wire."""

from policyd.v1 import policy_pb2
from tests.services.conftest import IN_SESSION
from tests.support.running import Running, failure

pytestmark = IN_SESSION

DENY = policy_pb2.DECISION_DENY


async def test_nothing_is_asked_of_keys_that_it_is_not_for(running: Running) -> None:
    """A caller that tells nothing of the user gets a decision where the call is out of scope, and
    an error where it is not."""
    enforce = policy_pb2.ENFORCE_MODE_ENFORCE
    _, openais = await running.create_key(enforce_user_ids=enforce)
    _, anthropics = await running.create_key(enforce_user_ids=enforce, accept=["metadata.user_id"])
    passed = await running.evaluate(key=openais, method="POST", path="/v1/messages")
    assert passed.explanation.summary.startswith("Allowed: this call is out of scope.")
    call = running.evaluate(key=anthropics, method="POST", path="/v1/messages")
    assert (await failure(call))[1] == "INVALID_DESCRIPTOR"
    absent = policy_pb2.EndUser(place="metadata.user_id", state=policy_pb2.USER_STATE_ABSENT)
    given = {"method": "POST", "path": "/v1/messages", "end_users": [absent]}
    assert (await running.evaluate(key=anthropics, **given)).decision == DENY
