"""PolicyService, AdminService, health and reflection on a real server, with real stubs."""

import asyncio
import gzip
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from policyd.client import NoDecision, PolicyClient
from policyd.decider import MAX_BATCH
from policyd.errors import CannotListen, SettingsError
from policyd.keys import tokens
from policyd.server.server import Server
from policyd.v1 import admin_pb2, policy_pb2
from policyd.v1.admin_pb2_grpc import AdminServiceStub
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.services.conftest import IN_SESSION
from tests.support.health import health_stub
from tests.support.running import Running, failure, settings

pytestmark = IN_SESSION
GOLDEN = Path(__file__).parents[1] / "golden" / "no_user.json"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CODE = grpc.StatusCode


async def test_a_request_without_user_is_denied_to_the_byte(running: Running) -> None:
    """The denial carries the status, headers and body of docs/contract.md, section 4, and the
    explanation why.
    """
    key, secret = await running.create_key(enforce_user_ids=policy_pb2.ENFORCE_MODE_ENFORCE)
    answer = await running.evaluate(key=secret, has_user=False)
    assert answer.decision == policy_pb2.DECISION_DENY
    assert answer.denial.http_status == 422
    assert answer.denial.body == GOLDEN.read_bytes()
    assert [header.name for header in answer.denial.headers] == [
        "Access-Control-Allow-Headers",
        "Access-Control-Allow-Origin",
        "Access-Control-Allow-Methods",
        "Content-Type",
    ]
    assert [flag.type for flag in answer.flags] == ["policy_enforce_user_ids"]
    assert answer.flags[0].description == "Config set to block requests without user field"
    assert answer.api_key_id == key.id
    assert answer.revision == key.revision
    assert answer.explanation.source == policy_pb2.SETTING_SOURCE_KEY
    assert "Denied: the field user is absent" in answer.explanation.summary


async def test_a_request_with_user_is_allowed(running: Running) -> None:
    """An allowed request has no denial, and every decision has an ID of its own, in order."""
    _, secret = await running.create_key(enforce_user_ids=policy_pb2.ENFORCE_MODE_ENFORCE)
    answers = [await running.evaluate(key=secret, has_user=True) for _ in range(3)]
    assert all(answer.decision == policy_pb2.DECISION_ALLOW for answer in answers)
    assert not any(answer.HasField("denial") for answer in answers)
    ids = [answer.decision_id for answer in answers]
    assert ids == sorted(set(ids))


async def test_the_key_is_taken_from_the_headers(running: Running) -> None:
    """Where the descriptor names no key, the header does, in any letter case."""
    _, secret = await running.create_key(enforce_user_ids=policy_pb2.ENFORCE_MODE_ENFORCE)
    header = policy_pb2.Header(name="X-UsagePanda-API-Key", value=f" {secret}\t")
    answer = await running.evaluate(headers=[header], has_user=False)
    assert answer.denial.http_status == 422


async def test_a_raw_body_is_read(running: Running) -> None:
    """A caller that cannot parse sends the body; the answer names the path to send upstream."""
    _, secret = await running.create_key(enforce_user_ids=policy_pb2.ENFORCE_MODE_ENFORCE)
    body = policy_pb2.RawBody(content=json.dumps({"user": " "}).encode())
    answer = await running.evaluate(
        key=secret, raw_body=body, method="POST", path="/V1/chat//completions"
    )
    assert answer.explanation.user_state == policy_pb2.USER_STATE_BLANK
    assert answer.upstream_path == "/v1/chat/completions"


async def test_malformed_unknown_and_revoked_keys_read_alike(running: Running) -> None:
    """All of them get one denial, so that no client learns which keys exist."""
    key, secret = await running.create_key()
    revoke = admin_pb2.RevokeApiKeyRequest(id=key.id)
    revoked = (await running.admin.RevokeApiKey(revoke, metadata=running.bearer)).api_key
    await running.evaluate(has_user=True, min_revision=revoked.revision)
    answers = [
        await running.evaluate(key=name, has_user=True)
        for name in ("x", "up-" + "0" * 48, secret, "é" * 100_000)
    ]
    assert {answer.denial.body for answer in answers} == {answers[0].denial.body}
    assert {answer.denial.http_status for answer in answers} == {403}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"key": "up-x"},
        {"key": "up-x", "method": "POST", "path": "/v1/embeddings"},
        {"key": "up-x", "user_state": 99},
        {"key": "up-x", "has_user": True, "user_state": -1},
        {"key": "up-x", "has_user": True, "safety_identifier_state": 15},
    ],
)
async def test_what_says_too_little_is_an_error(running: Running, fields: dict[str, Any]) -> None:
    """An empty message, an unknown state or an unknown value is INVALID_ARGUMENT."""
    call = running.policy.Evaluate(policy_pb2.EvaluateRequest(**fields))
    assert await failure(call) == (CODE.INVALID_ARGUMENT, "INVALID_DESCRIPTOR")
    assert (await running.evaluate(has_user=True)).denial.http_status == 403


async def test_an_oversize_request_is_refused(running: Running) -> None:
    """A message over the limit is RESOURCE_EXHAUSTED, and the server goes on."""
    huge = policy_pb2.RawBody(content=b" " * 5 * 2**20)
    call = running.policy.Evaluate(policy_pb2.EvaluateRequest(key="x", raw_body=huge))
    assert (await failure(call))[0] is CODE.RESOURCE_EXHAUSTED
    assert (await running.evaluate(has_user=True)).denial.http_status == 403


async def test_bytes_that_are_no_message(running: Running) -> None:
    """Bytes that are no message are rejected, and the server goes on."""
    evaluate: Any = running.channel.unary_unary("/policyd.v1.PolicyService/Evaluate")
    call = evaluate(b"\xff\xff\xff")
    assert await failure(call) == (CODE.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    nothing: Any = running.channel.unary_unary("/policyd.v1.PolicyService/Nothing")
    unknown = nothing(b"")
    assert (await failure(unknown))[0] is CODE.UNIMPLEMENTED
    assert (await running.evaluate(has_user=True)).denial.http_status == 403


async def test_a_batch(running: Running) -> None:
    """Items are answered in order under their IDs; one bad item spoils no other."""
    _, secret = await running.create_key(enforce_user_ids=policy_pb2.ENFORCE_MODE_ENFORCE)
    requests = {
        "denied": policy_pb2.EvaluateRequest(key=secret, has_user=False),
        "bad": policy_pb2.EvaluateRequest(key=secret),
        "allowed": policy_pb2.EvaluateRequest(key=secret, has_user=True),
    }
    items = [policy_pb2.BatchEvaluateItem(id=i, request=r) for i, r in requests.items()]
    answer = await running.policy.BatchEvaluate(policy_pb2.BatchEvaluateRequest(items=items))
    assert [result.id for result in answer.results] == list(requests)
    denied, bad, allowed = answer.results
    assert denied.response.denial.body == GOLDEN.read_bytes()
    assert (bad.status.code, bad.status.reason) == (3, "INVALID_DESCRIPTOR")
    assert allowed.response.decision == policy_pb2.DECISION_ALLOW


async def test_a_revision_in_a_batch(running: Running) -> None:
    """An item that requests a revision from the future fails alone."""
    _, secret = await running.create_key()
    requests = [
        policy_pb2.EvaluateRequest(key=secret, has_user=True, min_revision=revision)
        for revision in (0, 999)
    ]
    items = [policy_pb2.BatchEvaluateItem(id=str(n), request=r) for n, r in enumerate(requests)]
    batch = policy_pb2.BatchEvaluateRequest(items=items)
    now, later = (await running.policy.BatchEvaluate(batch, timeout=1.0)).results
    assert now.response.decision == policy_pb2.DECISION_ALLOW
    assert (later.status.code, later.status.reason) == (9, "REVISION_NOT_REACHED")


async def test_a_batch_of_bombs(running: Running) -> None:
    """Bodies that would grow too large together are not all read, and other calls are answered."""
    _, secret = await running.create_key(enforce_user_ids=policy_pb2.ENFORCE_MODE_ENFORCE)
    body = policy_pb2.RawBody(content=gzip.compress(b" " * 2**22), content_encoding="gzip")
    request = policy_pb2.EvaluateRequest(key=secret, raw_body=body)
    items = [policy_pb2.BatchEvaluateItem(id=str(n), request=request) for n in range(500)]
    batch = running.policy.BatchEvaluate(policy_pb2.BatchEvaluateRequest(items=items))
    meanwhile = await running.evaluate(key=secret, has_user=True)
    assert meanwhile.decision == policy_pb2.DECISION_ALLOW
    results = (await batch).results
    assert results[0].response.denial.http_status == 413
    assert results[-1].status.reason == "INVALID_DESCRIPTOR"


async def test_a_call_that_is_no_endpoint(running: Running) -> None:
    """The caller tells that such a call is no endpoint, and then its user may stay unknown."""
    _, secret = await running.create_key(enforce_user_ids=policy_pb2.ENFORCE_MODE_ENFORCE)
    passed = await running.evaluate(key=secret, in_scope=False)
    assert passed.decision == policy_pb2.DECISION_ALLOW
    assert passed.explanation.summary.startswith("Allowed: this call is out of scope.")
    denied = await running.evaluate(key=secret, in_scope=False, path="/v1/responses", user="")
    assert denied.denial.http_status == 422
    assert denied.upstream_path == "/v1/responses"


async def test_what_a_key_accepts_by_default(running: Running) -> None:
    """A key accepts both identifiers by default, and after an update that empties the list."""
    key, secret = await running.create_key(enforce_user_ids=policy_pb2.ENFORCE_MODE_ENFORCE)
    assert list(key.accept) == ["user", "safety_identifier"]
    allowed = await running.evaluate(key=secret, safety_identifier="s" * 128, has_user=False)
    assert allowed.explanation.identifier == "safety_identifier"
    mask = FieldMask(paths=["accept"])
    for accept, wanted in ((["user"], ["user"]), ([], ["user", "safety_identifier"])):
        changed = admin_pb2.ApiKey(id=key.id, accept=accept)
        update = admin_pb2.UpdateApiKeyRequest(api_key=changed, update_mask=mask)
        answer = await running.admin.UpdateApiKey(update, metadata=running.bearer)
        assert list(answer.api_key.accept) == wanted


async def test_trace_ids(running: Running) -> None:
    """A well-formed trace ID is kept, from the field or the header; any other counts as none."""
    header = policy_pb2.Header(name="X-UsagePanda-Trace-ID", value="t-1_A")
    assert (await running.evaluate(has_user=True, headers=[header])).trace_id == "t-1_A"
    given = await running.evaluate(has_user=True, headers=[header], trace_id="t-2")
    assert given.trace_id == "t-2"
    for wrong in ("a" * 100, "a b", "é", "a\n"):
        assert (await running.evaluate(has_user=True, trace_id=wrong)).trace_id == ""


async def test_bad_batches(running: Running) -> None:
    """A batch over the bound, or with an ID twice, is rejected whole.

    An empty one gets an empty answer.
    """
    request = policy_pb2.EvaluateRequest(has_user=True)
    for ids in ([str(n) for n in range(MAX_BATCH + 1)], ["a", "a"]):
        items = [policy_pb2.BatchEvaluateItem(id=i, request=request) for i in ids]
        call = running.policy.BatchEvaluate(policy_pb2.BatchEvaluateRequest(items=items))
        assert await failure(call) == (CODE.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    empty = await running.policy.BatchEvaluate(policy_pb2.BatchEvaluateRequest())
    assert not empty.results


async def test_a_revision_that_is_not_there_yet(running: Running) -> None:
    """A request for a future revision fails before the caller's deadline, with the reason."""
    request = policy_pb2.EvaluateRequest(has_user=True, min_revision=999)
    call = running.policy.Evaluate(request, timeout=1.0)
    assert await failure(call) == (CODE.FAILED_PRECONDITION, "REVISION_NOT_REACHED")


async def test_the_life_of_a_key(running: Running) -> None:
    """Keys are created, read, listed, changed and revoked; each change is in force at once."""
    key, secret = await running.create_key(name="app")
    assert (await running.evaluate(key=secret, has_user=False)).decision == 1

    key.enforce_user_ids = policy_pb2.ENFORCE_MODE_ENFORCE
    mask = FieldMask(paths=["enforce_user_ids"])
    update = admin_pb2.UpdateApiKeyRequest(api_key=key, update_mask=mask)
    changed = (await running.admin.UpdateApiKey(update, metadata=running.bearer)).api_key
    assert changed.enforce_user_ids == policy_pb2.ENFORCE_MODE_ENFORCE
    answer = await running.evaluate(key=secret, has_user=False, min_revision=changed.revision)
    assert answer.denial.http_status == 422

    again = running.admin.UpdateApiKey(update, metadata=running.bearer)
    assert await failure(again) == (CODE.ABORTED, "ETAG_MISMATCH")

    read = admin_pb2.GetApiKeyRequest(id=key.id)
    assert (await running.admin.GetApiKey(read, metadata=running.bearer)).api_key == changed
    every = admin_pb2.ListApiKeysRequest()
    listed = await running.admin.ListApiKeys(every, metadata=running.bearer)
    assert [one for one in listed.api_keys if one.id == key.id] == [changed]

    revoke = admin_pb2.RevokeApiKeyRequest(id=key.id)
    revoked = (await running.admin.RevokeApiKey(revoke, metadata=running.bearer)).api_key
    assert revoked.HasField("revoke_time")
    answer = await running.evaluate(key=secret, has_user=True, min_revision=revoked.revision)
    assert answer.denial.http_status == 403
    changed.ClearField("etag")
    update = admin_pb2.UpdateApiKeyRequest(api_key=changed, update_mask=mask)
    call = running.admin.UpdateApiKey(update, metadata=running.bearer)
    assert await failure(call) == (CODE.FAILED_PRECONDITION, "KEY_REVOKED")


async def test_pages_of_keys(running: Running) -> None:
    """Pages follow each other by their tokens, and have every key once, in order."""
    made = [(await running.create_key(name=f"key {number}"))[0].id for number in range(5)]
    listed: list[str] = []
    token = ""
    while True:
        request = admin_pb2.ListApiKeysRequest(page_size=2, page_token=token)
        page = await running.admin.ListApiKeys(request, metadata=running.bearer)
        listed += [key.id for key in page.api_keys]
        assert len(page.api_keys) <= 2
        token = page.next_page_token
        if not token:
            break
    assert [one for one in listed if one in made] == listed[-5:] == made
    assert len(set(listed)) == len(listed)


async def test_bad_administration(running: Running) -> None:
    """Each mistake has a status and a reason of its own."""
    admin, bearer = running.admin, running.bearer
    invalid = (CODE.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    create = admin_pb2.CreateApiKeyRequest
    key = admin_pb2.ApiKey
    for bad in (
        key(),
        key(name="x", accept=["email"]),
        key(name="x", enforce_user_ids=cast(policy_pb2.EnforceMode.ValueType, 77)),
    ):
        assert await failure(admin.CreateApiKey(create(api_key=bad), metadata=bearer)) == invalid
    mask = FieldMask(paths=["digest"])
    update = admin_pb2.UpdateApiKeyRequest(api_key=key(id="x"), update_mask=mask)
    assert await failure(admin.UpdateApiKey(update, metadata=bearer)) == invalid
    for pages in ({"page_size": -1}, {"page_token": "nonsense"}):
        listing = admin_pb2.ListApiKeysRequest(**pages)
        assert await failure(admin.ListApiKeys(listing, metadata=bearer)) == invalid
    missing = (CODE.NOT_FOUND, "KEY_NOT_FOUND")
    get = admin_pb2.GetApiKeyRequest(id="key_0")
    assert await failure(admin.GetApiKey(get, metadata=bearer)) == missing


async def test_the_scheme_in_any_letter_case(running: Running) -> None:
    """Bearer is a word of HTTP, which has no letter case."""
    token = running.bearer[0][1].removeprefix("Bearer ")
    metadata = (("authorization", f"bearer {token}"),)
    await running.admin.ListApiKeys(admin_pb2.ListApiKeysRequest(), metadata=metadata)


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer wrong"),),
        (("authorization", "Bearer "),),
        (("authorization", "Basic x"),),
    ],
)
async def test_administration_wants_the_token(running: Running, metadata: Any) -> None:
    """Without the token only health is answered."""
    request = admin_pb2.ListApiKeysRequest()
    refused = (CODE.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert await failure(running.admin.ListApiKeys(request, metadata=metadata)) == refused
    health = health_stub(running.admin_channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service="policyd.v1.AdminService"))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_services_do_not_mix(running: Running) -> None:
    """Keys cannot be managed on the callers' port, with a token or without."""
    stub = AdminServiceStub(running.channel)
    call = stub.ListApiKeys(admin_pb2.ListApiKeysRequest(), metadata=running.bearer)
    assert (await failure(call))[0] is CODE.UNIMPLEMENTED


async def test_health_and_reflection(running: Running) -> None:
    """Health tells the state of the server and of each service; reflection lists the services."""
    health = health_stub(running.channel)
    for service in ("", "policyd.v1.PolicyService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    unknown = health.Check(health_pb2.HealthCheckRequest(service="unknown"))
    assert (await failure(unknown))[0] is CODE.NOT_FOUND
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(cast(Any, running.channel))
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = [answer async for answer in stub.ServerReflectionInfo(iter([ask]))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert "policyd.v1.PolicyService" in names


@pytest.mark.slow
async def test_health_while_it_stops(tmp_path: Path) -> None:
    """A caller that watches health learns of the end in advance; a call under way is answered."""
    server = Server(settings(tmp_path))
    await server.__aenter__()
    async with grpc.aio.insecure_channel(str(server.grpc)) as channel:
        health = health_stub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="policyd.v1.PolicyService"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        waiting = policy_pb2.EvaluateRequest(has_user=True, min_revision=999)
        under_way = PolicyServiceStub(channel).Evaluate(waiting, timeout=1.0)
        await asyncio.sleep(0.1)
        stopping = asyncio.create_task(server.stop())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await failure(under_way) == (CODE.FAILED_PRECONDITION, "REVISION_NOT_REACHED")
        watch.cancel()
        await stopping


@pytest.mark.slow
@pytest.mark.parametrize("unready", [False, True])
async def test_without_the_database_decisions_go_on(tmp_path: Path, unready: bool) -> None:
    """An outage changes no decision.

    Past --max-staleness, the health service of the settings reports it, and recovers later. The
    others report it if the operator wants that; liveness never does.
    """
    quick = settings(tmp_path, max_staleness=0.3, unready_when_stale=unready)
    async with Server(quick) as server:
        stubs = Running(server, tokens.load(tmp_path / "admin-token", "test"))
        _, secret = await stubs.create_key(enforce_user_ids=policy_pb2.ENFORCE_MODE_ENFORCE)
        health = health_stub(stubs.channel)
        check = health_pb2.HealthCheckRequest(service="settings")
        expected = dict.fromkeys(
            ("", "policyd.v1.PolicyService"), NOT_SERVING if unready else SERVING
        )
        expected |= {"liveness": SERVING, "decisions": SERVING, "settings": NOT_SERVING}
        with sqlite3.connect(tmp_path / "policyd.db", isolation_level=None) as database:
            for table in ("revision", "api_keys"):
                database.execute(f"ALTER TABLE {table} RENAME TO lost_{table}")
            await _until(health, check, NOT_SERVING)
            for service, status in expected.items():
                asked = health_pb2.HealthCheckRequest(service=service)
                assert (await health.Check(asked)).status == status
            assert (await stubs.evaluate(key=secret, has_user=False)).denial.http_status == 422
            call = stubs.admin.ListApiKeys(admin_pb2.ListApiKeysRequest(), metadata=stubs.bearer)
            assert await failure(call) == (CODE.UNAVAILABLE, "STORE_UNAVAILABLE")
            for table in ("revision", "api_keys"):
                database.execute(f"ALTER TABLE lost_{table} RENAME TO {table}")
        database.close()
        for service in expected:
            await _until(health, health_pb2.HealthCheckRequest(service=service), SERVING)
        await stubs.channel.close()
        await stubs.admin_channel.close()


async def _until(health: Any, check: Any, status: int) -> None:
    async with asyncio.timeout(30):
        async for answer in health.Watch(check):
            if answer.status == status:
                return


@pytest.mark.slow
async def test_callers_with_a_token(tmp_path: Path) -> None:
    """With --caller-token-file, only a caller that shows the token is answered."""
    file = tmp_path / "caller-token"
    file.write_text("0123456789abcdef\n")
    file.chmod(0o600)
    async with Server(settings(tmp_path, caller_token_file=file)) as server:
        request = policy_pb2.EvaluateRequest(has_user=True)
        async with PolicyClient(str(server.grpc), token="0123456789abcdef") as client:
            assert (await client.evaluate(request)).denial.http_status == 403
        async with PolicyClient(str(server.grpc)) as client:
            with pytest.raises(NoDecision, match="bearer token is missing or wrong"):
                await client.evaluate(request)


async def test_a_busy_port(running: Running, tmp_path: Path) -> None:
    """A busy port is reported with the flag to change it."""
    busy = running.server.grpc
    with pytest.raises(CannotListen, match=rf"--grpc {busy} cannot be listened on"):
        async with Server(settings(tmp_path, grpc=busy)):
            pass


@pytest.mark.slow
async def test_a_token_file_that_others_can_read(tmp_path: Path) -> None:
    """Such a file is rejected, with the command that fixes it."""
    async with Server(settings(tmp_path)):
        pass
    file = tmp_path / "admin-token"
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        async with Server(settings(tmp_path)):
            pass


async def test_the_client_coalesces(running: Running) -> None:
    """Requests made at once each get their own answer; a caller that leaves affects no other."""
    _, secret = await running.create_key(enforce_user_ids=policy_pb2.ENFORCE_MODE_ENFORCE)
    async with PolicyClient(str(running.server.grpc), timeout=20) as client:
        requests = [
            policy_pb2.EvaluateRequest(key=secret, has_user=number % 3 == 0)
            for number in range(700)
        ]
        tasks = [asyncio.create_task(client.evaluate(request)) for request in requests]
        await asyncio.sleep(0)
        tasks[5].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number == 5:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert isinstance(answer, policy_pb2.EvaluateResponse)
            assert answer.HasField("denial") == (number % 3 != 0)


async def test_the_client_without_a_server(unused_port: Callable[[], int]) -> None:
    """The client reports that there is no decision, and why."""
    async with PolicyClient(f"127.0.0.1:{unused_port()}") as client:
        with pytest.raises(NoDecision, match="UNAVAILABLE"):
            await client.evaluate(policy_pb2.EvaluateRequest(has_user=True))
    with pytest.raises(NoDecision):
        await client.evaluate(policy_pb2.EvaluateRequest(has_user=True))
