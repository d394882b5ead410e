"""AdminService: rotation, expiry, names, declarations, defaults and the audit trail."""

import json
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from policyd.policies import TABLE
from policyd.v1 import admin_pb2 as pb
from policyd.v1 import policy_pb2
from tests.services.conftest import IN_SESSION
from tests.support.running import Running, failure, serving, worker

pytestmark = IN_SESSION
CODE = grpc.StatusCode
INVALID = (CODE.INVALID_ARGUMENT, "INVALID_ARGUMENT")
AUDIT, ENFORCE = policy_pb2.ENFORCE_MODE_AUDIT, policy_pb2.ENFORCE_MODE_ENFORCE
DIGEST = sha256(b"made elsewhere").hexdigest()


def declared(name: str, digest: str = "", **fields: Any) -> pb.DeclaredKey:
    return pb.DeclaredKey(api_key=pb.ApiKey(name=name, **fields), digest=digest)


async def rotate(running: Running, key: pb.ApiKey, **more: Any) -> pb.RotateApiKeyResponse:
    request = pb.RotateApiKeyRequest(id=key.id, **more)
    return await running.admin.RotateApiKey(request, metadata=running.bearer)


async def status(running: Running, secret: str, revision: int) -> int:
    answer = await running.evaluate(key=secret, has_user=True, min_revision=revision)
    return answer.denial.http_status


async def test_rotation(running: Running) -> None:
    """Unless the request says otherwise, the secret before stays valid for a day."""
    key, old = await running.create_key()
    made = await rotate(running, key, etag=key.etag)
    kept = made.api_key.previous_secret_expire_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(hours=23) < kept < timedelta(hours=25)
    assert (key.suffix, made.api_key.suffix) == (old[-4:], made.key[-4:])
    revision = made.api_key.revision
    assert [await status(running, one, revision) for one in (old, made.key)] == [0, 0]
    last = await rotate(running, key, keep_previous=Duration())
    assert not last.api_key.HasField("previous_secret_expire_time")
    revision = last.api_key.revision
    found = [await status(running, one, revision) for one in (old, made.key, last.key)]
    assert found == [403, 403, 0]
    assert await failure(rotate(running, key, etag=key.etag)) == (
        CODE.ABORTED,
        "ETAG_MISMATCH",
    )
    for keep in (Duration(seconds=-1), Duration(seconds=91 * 86400), Duration(seconds=10**11)):
        assert await failure(rotate(running, key, keep_previous=keep)) == INVALID
    nothing = pb.ApiKey(id="key_none")
    assert await failure(rotate(running, nothing)) == (CODE.NOT_FOUND, "KEY_NOT_FOUND")


async def test_expiry_and_names(running: Running) -> None:
    """A key's time is set with it and by a mask; a name is taken once, and finds its key."""
    end = Timestamp(seconds=4_000_000_000)
    key, secret = await running.create_key(name="ends", expire_time=end)
    assert key.expire_time == end

    async def update(path: str, **fields: Any) -> pb.ApiKey:
        wanted = pb.ApiKey(id=key.id, **fields)
        request = pb.UpdateApiKeyRequest(api_key=wanted, update_mask=FieldMask(paths=[path]))
        answer = await running.admin.UpdateApiKey(request, metadata=running.bearer)
        return answer.api_key

    past = await update("expire_time", expire_time=Timestamp(seconds=1))
    assert await status(running, secret, past.revision) == 403
    never = await update("expire_time")
    assert not never.HasField("expire_time")
    assert await status(running, secret, never.revision) == 0
    wrong = update("expire_time", expire_time=Timestamp(seconds=10**15))
    assert await failure(wrong) == INVALID

    taken = (CODE.ALREADY_EXISTS, "NAME_TAKEN")
    assert await failure(running.create_key(name="ends")) == taken
    other, _ = await running.create_key(name="other")
    rename = pb.UpdateApiKeyRequest(
        api_key=pb.ApiKey(id=other.id, name="ends"), update_mask=FieldMask(paths=["name"])
    )
    call = running.admin.UpdateApiKey(rename, metadata=running.bearer)
    assert await failure(call) == taken

    async def get(**fields: str) -> pb.ApiKey:
        request = pb.GetApiKeyRequest(**fields)
        return (await running.admin.GetApiKey(request, metadata=running.bearer)).api_key

    assert await get(name="ends") == await get(id=key.id) == never
    assert await failure(get(name="none")) == (CODE.NOT_FOUND, "KEY_NOT_FOUND")
    assert await failure(get(id=key.id, name="ends")) == INVALID


async def test_a_declaration(tmp_path: Path) -> None:
    """Keys and defaults are declared in one call, and are in force in one revision."""
    async with serving(tmp_path, worker) as running:
        gone, _ = await running.create_key(name="gone")
        request = pb.ApplyRequest(
            keys=[declared("app", enforce_user_ids=ENFORCE), declared("digest", DIGEST)],
            defaults=pb.Defaults(policies={TABLE.original.name: pb.PolicySetting(mode=AUDIT)}),
            prune=True,
            dry_run=True,
        )

        async def apply() -> pb.ApplyResponse:
            return await running.admin.Apply(request, metadata=running.bearer)

        told = await apply()
        assert [one.after.id for one in told.changes[1:3]] == ["", ""]
        request.dry_run = False
        made = await apply()
        names = [(one.action, one.after.name) for one in made.changes]
        assert names == [
            (pb.APPLIED_ACTION_REVOKE, "gone"),
            (pb.APPLIED_ACTION_CREATE, "app"),
            (pb.APPLIED_ACTION_CREATE, "digest"),
            (pb.APPLIED_ACTION_UNSPECIFIED, ""),
        ]
        assert [one.action for one in told.changes] == [one.action for one in made.changes]
        assert made.changes[0].before.id == gone.id
        assert made.changes[2].key == ""
        assert await status(running, made.changes[1].key, made.revision) == 0
        assert await status(running, "made elsewhere", made.revision) == 0
        assert (await apply()).changes == []
        read = await running.admin.GetDefaults(pb.GetDefaultsRequest(), metadata=running.bearer)
        assert read.defaults == made.changes[3].defaults_after
        assert read.defaults.revision == made.revision
        # What a key leaves out is not set.
        request.keys[0].api_key.ClearField("enforce_user_ids")
        (changed,) = (await apply()).changes
        assert (changed.before.enforce_user_ids, changed.after.enforce_user_ids) == (ENFORCE, 0)


@pytest.mark.parametrize(
    "keys",
    [
        [declared("app", policies={"nonsense": pb.PolicySetting(mode=ENFORCE)})],
        [declared("app"), declared("app")],
        [declared("app", "no digest")],
        [declared("app\x1b[2J")],
        [declared("app", enforce_user_ids=99)],
        [declared("app", expire_time=Timestamp(seconds=10**15))],
    ],
)
async def test_a_bad_declaration(running: Running, keys: list[pb.DeclaredKey]) -> None:
    call = running.admin.Apply(pb.ApplyRequest(keys=keys), metadata=running.bearer)
    assert await failure(call) == INVALID


async def test_the_audit_trail(running: Running) -> None:
    """Every change by this API is in it, with the address of the administrator, in pages."""
    key, secret = await running.create_key(name="audited")
    made = await rotate(running, key)

    async def trail(**fields: Any) -> pb.ListAuditRecordsResponse:
        request = pb.ListAuditRecordsRequest(**{"api_key_id": key.id} | fields)
        return await running.admin.ListAuditRecords(request, metadata=running.bearer)

    newest = await trail(api_key_id="")
    everything = await trail()
    assert newest.records[:2] == everything.records
    rotated, created = everything.records
    assert everything.next_page_token == ""
    assert (rotated.action, created.action) == ("key.rotate", "key.create")
    assert rotated.actor == "admin api 127.0.0.1"
    assert (rotated.api_key_id, rotated.api_key_name) == (key.id, "audited")
    assert rotated.revision == made.api_key.revision
    assert json.loads(rotated.before)["suffix"] == secret[-4:]
    assert json.loads(rotated.after)["suffix"] == made.key[-4:]
    assert secret not in str(everything)
    assert made.key not in str(everything)
    first = await trail(page_size=1)
    second = await trail(page_size=1, page_token=first.next_page_token)
    assert [*first.records, *second.records] == [rotated, created]
    assert [*(await trail(action="key.create")).records] == [created]
    assert [*(await trail(api_key_id="other")).records] == []
    assert [*(await trail(start_time=rotated.time)).records][:1] == [rotated]
    assert rotated not in (await trail(end_time=rotated.time)).records
    for bad in ({"page_token": "x"}, {"page_token": "9" * 99}, {"page_size": -1}):
        assert await failure(trail(**bad)) == INVALID
