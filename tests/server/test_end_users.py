"""Headers that name end users count from the callers that the operator lists, and no others."""

import asyncio
from pathlib import Path

import grpc
import pytest

from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.databases import migrated
from tests.support.envoy_checks import CHAT, Checker, status
from tests.support.envoy_checks import request as envoy_request
from tests.support.http_checks import check
from tests.support.processes import Policyd

ACCEPTED = "header:x-user,metadata.user_id"


def through_grpc(policyd: Policyd, key: str, *users: str) -> set[int]:
    """The statuses of the denials by Evaluate and BatchEvaluate, 0 where there is none."""
    asked = pb.EvaluateRequest(key=key, method="POST", path="/v1/chat/completions")
    asked.raw_body.content = CHAT
    asked.headers.extend(pb.Header(name="X-User", value=user) for user in users)
    with grpc.insecure_channel(policyd.grpc) as channel:
        stub = PolicyServiceStub(channel)
        batch = pb.BatchEvaluateRequest(items=[pb.BatchEvaluateItem(id="1", request=asked)])
        one = stub.Evaluate(asked, timeout=30)
        [other] = stub.BatchEvaluate(batch, timeout=30).results
    return {one.denial.http_status, other.response.denial.http_status}


def through_http(policyd: Policyd, key: str, *users: str) -> set[int]:
    """The status of the denial by the HTTP check, 0 where there is none."""
    headers = [("X-User", user) for user in users]
    answer = asyncio.run(check(f"http://{policyd.http}", key, CHAT, *headers))
    return {0 if answer.status == 200 else answer.status}


def through_envoy(policyd: Policyd, key: str, *users: str) -> set[int]:
    """The statuses of the denials by Envoy's Check, with both kinds of headers."""
    checker = Checker(policyd.grpc)
    raw = [("x-usagepanda-api-key", key), *(("x-user", user) for user in users)]
    joined = {"x-usagepanda-api-key": key} | ({"x-user": ",".join(users)} if users else {})
    answers = [checker.ask(envoy_request(headers, CHAT)) for headers in (raw, joined)]
    checker.close()
    return {status(answer) for answer in answers}


ADAPTERS = {"grpc": through_grpc, "http": through_http, "envoy": through_envoy}


@pytest.mark.parametrize("trusted", ["grpc", "http,envoy"])
def test_callers(tmp_path: Path, trusted: str) -> None:
    """A header counts from each caller that is listed, and from no other; two values that differ
    count as none.
    """
    flags = ("--end-user-headers", "x-user", "--end-user-callers", trusted)
    policyd = Policyd(migrated(tmp_path), "--http", "127.0.0.1:0", *flags)
    key = policyd.create_key("enforce", accept=ACCEPTED)
    for name, ask in ADAPTERS.items():
        allowed = {0} if name in trusted.split(",") else {422}
        assert ask(policyd, key, "alice") == allowed
        assert ask(policyd, key, "alice", "alice") == allowed
        assert ask(policyd, key, "alice", "bob") == {422}
        assert ask(policyd, key) == {422}
    assert policyd.stop() == 0
