"""UpdateApiKey: what its mask names of a key's policies, old fields and new ones."""

import grpc
import pytest

from policyd.policies import TABLE
from policyd.v1 import admin_pb2, policy_pb2
from tests.services.conftest import IN_SESSION
from tests.support.running import Running, failure

pytestmark = IN_SESSION

MASKS = {
    "policies.max_tokens": {"max_tokens": "9", "enforce_user_ids": "", "user_format": "min=3"},
    "policies.user_format": {"max_tokens": "500", "enforce_user_ids": ""},
    "policies": {"max_tokens": "9"},
    "enforce_user_ids": {"max_tokens": "500", "enforce_user_ids": "", "user_format": "min=3"},
    "name": {"max_tokens": "500", "enforce_user_ids": "", "user_format": "min=3"},
    "policies.enforce_user_ids": {"max_tokens": "500", "user_format": "min=3"},
}


@pytest.mark.parametrize("mask", MASKS)
async def test_what_an_update_changes(running: Running, mask: str) -> None:
    """An update changes what its mask names, and leaves all other policies alone."""
    enforce = policy_pb2.ENFORCE_MODE_ENFORCE

    def setting(value: str) -> admin_pb2.PolicySetting:
        return admin_pb2.PolicySetting(mode=enforce, value=value)

    key, _ = await running.create_key(
        enforce_user_ids=enforce,
        policies={"max_tokens": setting("500"), "user_format": setting("min=3")},
    )
    wanted = admin_pb2.ApiKey(
        id=key.id,
        name=f"other {mask}",
        enforce_user_ids=enforce,
        policies={"max_tokens": setting("9")},
        etag=key.etag,
    )
    request = admin_pb2.UpdateApiKeyRequest(api_key=wanted)
    request.update_mask.paths.append(mask)
    changed = (await running.admin.UpdateApiKey(request, metadata=running.bearer)).api_key
    set_now = {name: one.value for name, one in changed.policies.items() if one.mode}
    assert set_now == MASKS[mask]
    assert changed.name == (f"other {mask}" if mask == "name" else key.name)


async def test_two_fields_of_one_setting(running: Running) -> None:
    """A new key's older fields and its map set the same, or one of them does."""
    enforce, off = policy_pb2.ENFORCE_MODE_ENFORCE, policy_pb2.ENFORCE_MODE_OFF
    name = TABLE.original.name
    both = {name: admin_pb2.PolicySetting(mode=enforce)}
    key, _ = await running.create_key(enforce_user_ids=enforce, policies=both)
    assert key.policies[name].mode == enforce
    call = running.create_key(enforce_user_ids=off, policies=both)
    assert await failure(call) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
