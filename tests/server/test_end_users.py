"""Headers that name end users count from the callers that the operator lists, and no others."""

import asyncio
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from policyd.engine.states import Mode
from policyd.policies import TABLE
from policyd.server.server import Server
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.databases import open_store
from tests.support.envoy_checks import CHAT, Checker, status
from tests.support.envoy_checks import request as envoy_request
from tests.support.http_checks import check
from tests.support.processes import Policyd
from tests.support.running import LOCAL, beside

ACCEPTED = "header:x-user,metadata.user_id"


def through_grpc(policyd: Policyd | Server, key: str, *users: str) -> set[int]:
    """The statuses of the denials by Evaluate and BatchEvaluate, 0 where there is none."""
    asked = pb.EvaluateRequest(key=key, method="POST", path="/v1/chat/completions")
    asked.raw_body.content = CHAT
    asked.headers.extend(pb.Header(name="X-User", value=user) for user in users)
    with grpc.insecure_channel(str(policyd.grpc)) as channel:
        stub = PolicyServiceStub(channel)
        batch = pb.BatchEvaluateRequest(items=[pb.BatchEvaluateItem(id="1", request=asked)])
        one = stub.Evaluate(asked, timeout=30)
        [other] = stub.BatchEvaluate(batch, timeout=30).results
    return {one.denial.http_status, other.response.denial.http_status}


def through_http(policyd: Policyd | Server, key: str, *users: str) -> set[int]:
    """The status of the denial by the HTTP check, 0 where there is none."""
    headers = [("X-User", user) for user in users]
    answer = asyncio.run(check(f"http://{policyd.http}", key, CHAT, *headers))
    return {0 if answer.status == 200 else answer.status}


def through_envoy(policyd: Policyd | Server, key: str, *users: str) -> set[int]:
    """The statuses of the denials by Envoy's Check, with both kinds of headers."""
    checker = Checker(str(policyd.grpc))
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
    with closing(open_store(f"sqlite:///{tmp_path}/policyd.db")) as store:
        enforced = TABLE.with_original(Mode.ENFORCE)
        _, key = store.keys.create("app", enforced, accept=tuple(ACCEPTED.split(",")))
    callers = tuple(trusted.split(","))
    given = {"end_user_headers": ("x-user",), "end_user_callers": callers, "http": LOCAL}
    with beside(tmp_path, **given) as policyd:
        for name, ask in ADAPTERS.items():
            allowed = {0} if name in callers else {422}
            assert ask(policyd, key, "alice") == allowed
            assert ask(policyd, key, "alice", "alice") == allowed
            assert ask(policyd, key, "alice", "bob") == {422}
            assert ask(policyd, key) == {422}
