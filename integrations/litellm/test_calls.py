"""Which of LiteLLM's calls are in scope, what counts as their user, and that it goes upstream."""

import asyncio
import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from integrations.litellm.proxy import (
    CHAT,
    CHAT_WITH_USER,
    ENFORCE,
    FOLDER,
    MASTER,
    VENV,
    LiteLLM,
    chat,
    send,
)
from policyd.descriptor.body import read_body
from policyd.descriptor.describe import HttpRequest, describe
from policyd.descriptor.headers import by_name
from policyd.engine.places import IDENTIFIERS
from tests.support import requirements
from tests.support.conformance import Key, Keys
from tests.support.ports import unused_port
from tests.support.processes import Policyd, Program, environment
from tests.support.raw_http import NO_USER, Response, ask, connect
from tests.support.stack import Upstream

pytestmark = pytest.mark.timeout(600)
BOTH = Key(mode="enforce", accept=("user", "safety_identifier"))
OFF = Key(mode="off")
USER = b'"user":"alice"'
TWINS = ("X_UsagePanda_Api_Key", "x-usagepanda_api-key", "x_usagepanda-trace-id")


def inside(script: str, *arguments: str) -> Any:
    """The JSON that `script` prints when it runs in the environment of LiteLLM and the hook."""
    requirements.file(VENV / "python", "make interop installs it")
    env = environment({"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": str(FOLDER)})
    command = [VENV / "python", "-c", script, *arguments]
    done = subprocess.run(  # noqa: S603  # It runs a script of this test.
        command, capture_output=True, env=env, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


NAMES = """
import json, typing
import policyd_hook as hook
from litellm.proxy.common_request_processing import ProxyBaseLLMRequestProcessing
from litellm.types.utils import CallTypes, CallTypesLiteral
process = ProxyBaseLLMRequestProcessing.common_processing_pre_call_logic
routes = typing.get_args(typing.get_type_hints(process)["route_type"])
known = {one.value for one in CallTypes} | set(typing.get_args(CallTypesLiteral)) | set(routes)
print(json.dumps([sorted(known), sorted(hook.IN_SCOPE), sorted(hook.OUT_OF_SCOPE)]))
"""


def test_every_call_type_is_known() -> None:
    """Each call type of LiteLLM is in one of the hook's tables: a new one fails here."""
    known, in_scope, out_of_scope = (set(names) for names in inside(NAMES))
    assert not known - in_scope - out_of_scope
    assert not in_scope & out_of_scope
    # Nor do the tables name others, except those of older versions.
    assert in_scope - known <= {"embeddings"}


def test_an_unknown_call_type_is_in_scope() -> None:
    """A call type that the hook does not know is in scope, so an enforcing key denies it."""
    script = (
        "import json, policyd_hook as hook\n"
        "asked = hook.described({'user': 'alice'}, 'teleport', 'k')\n"
        "print(json.dumps([asked.HasField('in_scope'), asked.path, asked.user, asked.user_state]))"
    )
    is_given, path, user, state = inside(script)
    assert (is_given, path, user) == (False, "", "")
    assert state == 2  # USER_STATE_ABSENT


DESCRIBED = """
import json, sys
import policyd_hook as hook
from litellm.types.proxy.litellm_pre_call_utils import RedactedDict
headers, bodies = json.loads(sys.argv[1])
found = []
for body in bodies:
    data = {
        **body,
        "secret_fields": {"raw_headers": RedactedDict(headers)},
        "proxy_server_request": {"headers": headers},
    }
    message = hook.described(data, "acompletion", "")
    found.append(message.SerializeToString(deterministic=True).hex())
print(json.dumps(found))
"""


def test_the_descriptor() -> None:
    """The descriptor of a chat equals that of every other adapter, to the byte."""
    headers = {
        "x-usagepanda-api-key": "up-1",
        "user-agent": "a" * 1000,
        "openai-organization": "org",
        "x-request-id": "r-1",
        "x-other": "kept back",
    }
    values = ["alice", "", " ", "u" * 2000, None, False, 0, 0.0, 1, True, [], {}]
    bodies: list[dict[str, object]] = [{"model": "m"}, {"model": "m" * 2000, "user": "alice"}]
    bodies += [{"model": "m", name: value} for name in IDENTIFIERS for value in values]
    request = HttpRequest("POST", "/v1/chat/completions", "", by_name(headers.items()))
    expected = []
    for body in bodies:
        attributes = read_body(json.dumps(body).encode(), "", "", request.target.endpoint)
        message = describe(request, attributes)
        expected.append(message.SerializeToString(deterministic=True).hex())
    assert inside(DESCRIBED, json.dumps([headers, bodies])) == expected


MESSAGES = CHAT[:-1] + b',"max_tokens":5}'
CONTENTS = b'{"contents":[{"role":"user","parts":[{"text":"Hello"}]}]}'
UNATTRIBUTED = {
    "messages": ("/v1/messages", MESSAGES),
    "messages of another user": ("/v1/messages", MESSAGES[:-1] + b',"user":"alice"}'),
    "messages, blank": ("/v1/messages", MESSAGES[:-1] + b',"metadata":{"user_id":" "}}'),
    "messages, cut": (
        "/v1/messages",
        MESSAGES[:-1] + b',"metadata":{"user_id":"%s"}}' % (b" " * 64 + b"alice"),
    ),
    "messages, overridden": (
        "/v1/messages",
        MESSAGES[:-1] + b',"metadata":{"user_id":"alice"},"user":""}',
    ),
    "generateContent": ("/v1beta/models/gpt-4o-mini:generateContent", CONTENTS),
    # LiteLLM maps no field of it to a user.
    "generateContent, user": (
        "/v1beta/models/gpt-4o-mini:generateContent",
        CONTENTS[:-1] + b"," + USER + b"}",
    ),
    "streamGenerateContent": ("/v1beta/models/gpt-4o-mini:streamGenerateContent", CONTENTS),
    "interactions": ("/interactions", b'{"model":"gpt-4o-mini","input":"Hello"}'),
    "interactions beta": ("/v1beta/interactions", b'{"model":"gpt-4o-mini","input":"Hello"}'),
}


@pytest.mark.parametrize(("target", "body"), UNATTRIBUTED.values(), ids=UNATTRIBUTED)
def test_other_ways_to_a_model(
    proxy: LiteLLM, keys: Keys, upstream: Upstream, target: str, body: bytes
) -> None:
    """No protocol that LiteLLM translates reaches a model without a user."""
    upstream.forget()
    headers = [("x-usagepanda-api-key", keys.secret(ENFORCE))]
    response = send(proxy, target, body, headers)
    assert response.status == 422
    assert b"Config set to block requests without user field" in response.body
    assert not upstream.received
    assert send(proxy, target, body, [("x-usagepanda-api-key", keys.secret(OFF))]).status == 200


@pytest.mark.parametrize("model", ["gpt-4o-mini", "in-house-7b"])
def test_messages_with_a_user(proxy: LiteLLM, keys: Keys, upstream: Upstream, model: str) -> None:
    """Anthropic's `metadata.user_id` is forwarded as `user`, and counts as it."""
    upstream.forget()
    body = json.loads(MESSAGES) | {"model": model, "metadata": {"user_id": "alice"}}
    headers = [("x-usagepanda-api-key", keys.secret(ENFORCE))]
    response = send(
        proxy, "/v1/messages", json.dumps(body | {"drop_params": True}).encode(), headers
    )
    assert response.status == 200
    assert [user_of(one) for one in upstream.received] == ["alice"]


def user_of(received: Any) -> str | None:
    """The end user that the upstream received."""
    body = json.loads(received.body)
    told = body.get("user") or body.get("safety_identifier")
    return None if told is None else str(told)


# --- fields that rewrite the request -----------------------------------------------------------

SECOND_TRY = {
    "fallbacks": [{"model": "gpt-4o", "user": ""}],
    "nested": [{"model": "gpt-4o", "fallbacks": [{"model": "gpt-4", "user": None}]}],
    "by group": [{"demo-error-500": [{"model": "gpt-4o", "user": ""}]}],
    "dropping": [{"model": "gpt-4o", "additional_drop_params": ["user"]}],
    "disallowing": [{"model": "in-house-7b", "allowed_openai_params": [], "drop_params": True}],
    "extra body": [{"model": "gpt-4o", "extra_body": {"user": ""}}],
    "JSON in a string": '[{"model":"gpt-4o","user":""}]',
}
FIELDS = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")


@pytest.mark.parametrize("told", SECOND_TRY.values(), ids=SECOND_TRY)
def test_the_second_try(proxy: LiteLLM, keys: Keys, upstream: Upstream, told: object) -> None:
    """A field that changes the request after a failure cannot replace its user."""
    upstream.forget()
    failing = json.loads(CHAT_WITH_USER) | {"model": "demo-error-500"}
    changes: list[dict[str, object]] = [{name: told} for name in FIELDS]
    for change in [*changes, {"router_settings_override": {"fallbacks": told}}]:
        body = json.dumps(failing | change).encode()
        response = chat(proxy, keys.secret(ENFORCE), body)
        assert response.status == 422, (change, response)
    assert not upstream.received


@pytest.mark.parametrize("twin", ["User", "USER", "Safety_Identifier"])
def test_another_letter_case(proxy: LiteLLM, keys: Keys, upstream: Upstream, twin: str) -> None:
    """A name that only some upstreams read as an identifier makes the one beside it void."""
    upstream.forget()
    for change in ({twin: ""}, {"extra_body": {twin: ""}}):
        body = json.dumps(json.loads(CHAT_WITH_USER) | change).encode()
        assert chat(proxy, keys.secret(ENFORCE), body).status == 422, change
    assert not upstream.received


def test_a_second_try_that_keeps_the_user(proxy: LiteLLM, keys: Keys, upstream: Upstream) -> None:
    """A second try that keeps the user is allowed, and every try has the user, even where LiteLLM
    does not know the model.
    """
    upstream.forget()
    body = json.loads(CHAT_WITH_USER) | {"model": "demo-error-500", "drop_params": True}
    body["fallbacks"] = ["in-house-7b"]
    assert chat(proxy, keys.secret(ENFORCE), json.dumps(body).encode()).status == 200
    models = [json.loads(one.body)["model"] for one in upstream.received]
    assert (models[0], models[-1]) == ("demo-error-500", "in-house-7b")
    assert {user_of(one) for one in upstream.received} == {"alice"}


OWN_FIELDS = """
import json
from litellm.types.utils import all_litellm_params
print(json.dumps(sorted(name for name in set(all_litellm_params) if "cost" not in name)))
"""
MORE_FIELDS = (
    *("drop_params", "modify_params", "mock_testing_fallbacks", "mock_testing_context_fallbacks"),
    *("mock_testing_content_policy_fallbacks", "disable_fallbacks", "litellm_params", "store"),
    *("optional_params", "default_fallbacks", "thinking", "background", "service_tier"),
)
CALLS = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": b'{"model":"in-house-7b","input":"Hello"}',
    "/v1/embeddings": b'{"model":"in-house-7b","input":"Hello"}',
}


@pytest.mark.parametrize(("target", "body"), CALLS.items(), ids=CALLS)
def test_no_field_of_litellms_loses_the_user(
    proxy: LiteLLM, keys: Keys, upstream: Upstream, target: str, body: bytes
) -> None:
    """Whichever of LiteLLM's own fields a client sets, the upstream gets the user."""
    upstream.forget()
    headers = [("x-usagepanda-api-key", keys.secret(BOTH))]
    for name in (*inside(OWN_FIELDS), *MORE_FIELDS):
        field = json.dumps({name: True}).encode()[1:-1]
        send(proxy, target, body[:-1] + b"," + USER + b"," + field + b"}", headers)
    assert len(upstream.received) > 50
    assert {user_of(one) for one in upstream.received} == {"alice"}


@pytest.mark.parametrize("value", ["user", "user.*", "$.user", "safety_identifier"])
def test_what_is_dropped(proxy: LiteLLM, keys: Keys, upstream: Upstream, value: str) -> None:
    """A request that has LiteLLM drop its user is denied, wherever the instruction stands."""
    upstream.forget()
    for change in (
        {"additional_drop_params": [value]},
        {"extra": {"additional_drop_params": value}},
    ):
        body = json.dumps(json.loads(CHAT_WITH_USER) | change).encode()
        assert chat(proxy, keys.secret(ENFORCE), body).status == 422
    assert not upstream.received


# --- headers -----------------------------------------------------------------------------------


def test_denials_name_their_decision(proxy: LiteLLM, keys: Keys) -> None:
    """A denial has the decision's ID, by which the console finds the decision."""
    first, second = (chat(proxy, keys.secret(ENFORCE), CHAT) for _ in range(2))
    (one,), (other,) = first.all("x-request-id"), second.all("x-request-id")
    assert len(one) == 32
    assert one != other


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that contains the hook, for a configuration of the test's own."""
    made = tmp_path_factory.mktemp("litellm")
    (made / "policyd_hook.py").write_text((FOLDER / "policyd_hook.py").read_text())
    return made


ECHO = """
import sys
from mcp.server import MCPServer
server = MCPServer("echo")
@server.tool()
def echo(text: str) -> str:
    return "echo: " + text
server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def forwarding(policyd: Policyd, upstream: Upstream, folder: Path) -> Iterator[LiteLLM]:
    """A LiteLLM that passes headers on, uploads files and calls an MCP server's tools."""
    requirements.file(VENV / "python", "make interop installs it")
    port = unused_port()
    words = ("/bin/sh", "-c", f"exec {VENV}/python -c '{ECHO}' {port} 2>&1")
    tools = Program(*words, ready=r"Uvicorn running on (\S+)")
    config = yaml.safe_load((FOLDER / "config.yaml").read_text())
    config["general_settings"]["forward_client_headers_to_llm_api"] = True
    config["mcp_servers"] = {"echo": {"transport": "http", "url": f"http://127.0.0.1:{port}/mcp"}}
    at = {"api_key": "os.environ/OPENAI_API_KEY", "api_base": "os.environ/OPENAI_BASE_URL"}
    config["files_settings"] = [{"custom_llm_provider": "openai"} | at]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    env = {"POLICYD_TARGET": policyd.grpc, "POLICYD_TIMEOUT": "30"}
    server = LiteLLM(folder / "config.yaml", unused_port(), upstream.url, env)
    yield server
    server.stop()
    tools.stop()


def test_own_headers_stay_here(forwarding: LiteLLM, keys: Keys, upstream: Upstream) -> None:
    """Where LiteLLM passes headers on, it forwards no x-usagepanda-* header, in any spelling."""
    upstream.forget()
    sent = [*((name, "x") for name in TWINS), ("x-other", "1"), ("x-usagepanda-trace-id", "t")]
    body = CHAT_WITH_USER[:-1] + b',"extra_headers":{"X_Usagepanda-Api_Key":"x","x-more":"1"}}'
    for given in (CHAT_WITH_USER, body):
        assert chat(forwarding, keys.secret(ENFORCE), given, *sent).status == 200
    names = [name.replace(b"_", b"-") for one in upstream.received for name, _ in one.headers]
    assert b"x-other" in names
    assert not [name for name in names if name.startswith(b"x-usagepanda-")]


# --- batches -----------------------------------------------------------------------------------


def line(body: dict[str, object], url: str = "/v1/chat/completions") -> bytes:
    """One request of a batch."""
    return json.dumps({"custom_id": "1", "method": "POST", "url": url, "body": body}).encode()


def upload(at: LiteLLM, key: str, *lines: bytes) -> Response:
    """Upload a batch's requests."""
    name = b'Content-Disposition: form-data; name="%s"'
    purpose = name % b"purpose" + b"\r\n\r\nbatch"
    file = name % b"file" + b'; filename="a.jsonl"\r\n\r\n' + b"\n".join(lines)
    form = b"--B\r\n" + purpose + b"\r\n--B\r\n" + file + b"\r\n--B--\r\n"
    headers = [MASTER, ("Content-Type", "multipart/form-data; boundary=B")]
    headers.append(("x-usagepanda-api-key", key))
    return asyncio.run(ask(at.url, "POST", "/v1/files", headers, form))


WITHOUT = json.loads(CHAT)
WITH = json.loads(CHAT_WITH_USER)
CLAIM = {"method": "GET", "url": "http://x/v1/models", "headers": {}, "body": {"user": "alice"}}
BAD_LINES = {
    "chat": line(WITHOUT),
    "blank": line(WITHOUT | {"user": " "}),
    "responses": line({"model": "m", "input": "Hello"}, "/v1/responses"),
    "an unknown path": line(WITHOUT, "/elsewhere"),
    "one that claims to be another": line(
        WITHOUT | {"proxy_server_request": CLAIM, "secret_fields": {"raw_headers": {}}}
    ),
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES)
def test_a_batch_with_a_line_without_user(
    forwarding: LiteLLM, keys: Keys, upstream: Upstream, bad: bytes
) -> None:
    """An enforcing key denies the whole upload; any other key forwards it whole."""
    upstream.forget()
    response = upload(forwarding, keys.secret(ENFORCE), line(WITH), bad, line(WITH))
    assert (response.status, response.body) == (422, NO_USER)
    assert not upstream.received
    assert upload(forwarding, keys.secret(OFF), line(WITH), bad).status == 200
    assert bad in upstream.received[0].body


def test_a_batch_with_users(forwarding: LiteLLM, keys: Keys, upstream: Upstream) -> None:
    """A batch whose lines all name a user is forwarded unchanged."""
    upstream.forget()
    lines = [line(WITH | {"seed": number}) for number in range(70)]
    assert upload(forwarding, keys.secret(ENFORCE), *lines).status == 200
    assert b"\n".join(lines) in upstream.received[0].body


# --- paths out of scope ------------------------------------------------------------------------


def test_mcp_tools(forwarding: LiteLLM, keys: Keys, upstream: Upstream) -> None:
    """MCP tools are out of scope: a client may use them with a policyd key and without one."""
    upstream.forget()
    asked = asyncio.run(ask(forwarding.url, "GET", "/mcp-rest/tools/list", [MASTER]))
    (tool,) = json.loads(asked.body)["tools"]
    call = {"name": "echo", "arguments": {"text": "hello"}}
    call["server_id"] = tool["mcp_info"].get("server_id") or tool["mcp_info"]["server_name"]
    for headers in ([], [("x-usagepanda-api-key", keys.secret(ENFORCE))]):
        response = send(forwarding, "/mcp-rest/tools/call", json.dumps(call).encode(), headers)
        assert response.status == 200, response
        assert b"echo: hello" in response.body
    assert not upstream.received


def test_calls_out_of_scope(proxy: LiteLLM, keys: Keys, upstream: Upstream) -> None:
    """A call out of scope is allowed with a policyd key, and denied without one."""
    upstream.forget()
    body = b'{"model":"omni-moderation-latest","input":"Hello"}'
    headers = [("x-usagepanda-api-key", keys.secret(ENFORCE))]
    assert send(proxy, "/v1/moderations", body, headers).status == 200
    assert send(proxy, "/v1/moderations", body).status == 403
    assert len(upstream.received) == 1


# --- WebSockets --------------------------------------------------------------------------------


def frame(text: bytes) -> bytes:
    """A client's text frame with a mask of zeros."""
    assert len(text) < 126
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text


@pytest.mark.parametrize("target", ["/v1/responses?model=gpt-4o-mini", "/v1/realtime?model=gpt-4o"])
def test_websockets(proxy: LiteLLM, keys: Keys, upstream: Upstream, target: str) -> None:
    """Where the key enforces, nothing that a client sends over a WebSocket is forwarded."""
    upstream.forget()
    nonce = base64.b64encode(b"0123456789abcdef").decode()
    head = [
        *(f"GET {target} HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: websocket"),
        *("Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {nonce}", ": ".join(MASTER)),
        *(f"x-usagepanda-api-key: {keys.secret(ENFORCE)}", "", ""),
    ]
    create = b'{"type":"response.create","model":"gpt-4o-mini","input":"Hello"}'

    async def talk() -> bytes:
        reader, writer = await connect(proxy.url)
        writer.write("\r\n".join(head).encode())
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        writer.write(frame(create))
        with suppress(ConnectionError):
            answer += await asyncio.wait_for(reader.read(), 60)
        writer.close()
        return answer

    assert b"Config set to block requests without user field" in asyncio.run(talk())
    assert not upstream.received
