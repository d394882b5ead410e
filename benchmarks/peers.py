"""Other programs beside which ours are measured, where `make bench-peers` has installed them.

Portkey's gateway passes requests on without any policy. LiteLLM checks with its own switch that a
request has a user. Cerbos decides by a policy like ours about the same descriptor, whose fields
are the attributes of its resource.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import yaml
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from benchmarks import traffic
from benchmarks.load import Target, grpc_target, http_target
from benchmarks.processes import ROOT, Program, started
from tests.support.ports import unused_port

_MODULES = ROOT / "benchmarks" / "peers" / "node_modules"
_PORTKEY = _MODULES / "@portkey-ai/gateway/build/start-server.js"
_LITELLM = ROOT / ".venv-litellm/bin/litellm"
_INSTALL = "is not installed: `make bench-peers` does it"
_MASTER = "sk-master"
_CHECK = "/cerbos.svc.v1.CerbosService/CheckResources"
_POLICY = {
    "apiVersion": "api.cerbos.dev/v1",
    "resourcePolicy": {
        "resource": "request",
        "version": "default",
        "rules": [
            {
                "actions": ["send"],
                "effect": "EFFECT_ALLOW",
                "roles": ["*"],
                "condition": {"match": {"expr": 'has(R.attr.user) && R.attr.user.matches("[^ ]")'}},
            }
        ],
    },
}


def versions() -> dict[str, str]:
    """The versions of those that are installed, and that others are absent."""
    found = {}
    for name, package in {"Portkey": "@portkey-ai/gateway", "Cerbos": "cerbos"}.items():
        file = _MODULES / package / "package.json"
        found[name] = json.loads(file.read_text())["version"] if file.exists() else "absent"
    infos = (ROOT / ".venv-litellm").glob("lib/*/site-packages/litellm-*.dist-info")
    found["LiteLLM"] = next((one.name[8:-10] for one in infos), "absent")
    return found


class Absent(Exception):
    """A peer is not on this machine; the message says how to get it."""


def portkey(running: ExitStack, upstream: str) -> tuple[Program, Target]:
    """Portkey's gateway, without a policy. Raises Absent."""
    node = shutil.which("node")
    if node is None or not _PORTKEY.exists():
        raise Absent(f"Portkey {_INSTALL}")
    port = unused_port()
    command = (node, str(_PORTKEY), f"--port={port}", "--headless")
    program = running.enter_context(started(*command, ready="", at=f"127.0.0.1:{port}"))
    headers = {
        "authorization": "Bearer sk-benchmark",
        "content-type": "application/json",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"{upstream}/v1",
    }
    url = f"http://127.0.0.1:{port}{traffic.PATH}"
    return program, http_target(url, traffic.body(300), headers)


def litellm(running: ExitStack, upstream: str, folder: Path) -> tuple[Program, Target]:
    """LiteLLM's proxy, which rejects requests without a user. Raises Absent."""
    if not _LITELLM.exists():
        raise Absent(f"LiteLLM {_INSTALL}")
    port, file = unused_port(), folder / "litellm.yaml"
    parameters = {"model": "openai/*", "api_key": "sk-upstream", "api_base": f"{upstream}/v1"}
    settings = {
        "model_list": [{"model_name": "*", "litellm_params": parameters}],
        "litellm_settings": {"num_retries": 0, "telemetry": False},
        "general_settings": {"master_key": _MASTER, "enforce_user_param": True},
    }
    file.write_text(yaml.safe_dump(settings))
    # LiteLLM would fetch a list of prices from the network.
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    command = (str(_LITELLM), "--config", str(file), "--host", "127.0.0.1", "--port", str(port))
    place = f"127.0.0.1:{port}"
    program = running.enter_context(started(*command, ready="", at=place, env=env))
    headers = {"authorization": f"Bearer {_MASTER}", "content-type": "application/json"}
    url = f"http://127.0.0.1:{port}{traffic.PATH}"
    return program, http_target(url, traffic.body(300), headers)


class Cerbos:
    """A running Cerbos, which writes its decisions to a file if it is `logged`. Raises Absent."""

    def __init__(self, running: ExitStack, folder: Path, *, logged: bool) -> None:
        binaries = sorted(_MODULES.glob("@cerbos/cerbos-*/cerbos-*"))
        if not binaries:
            raise Absent(f"Cerbos {_INSTALL}")
        policies = folder / "policies"
        policies.mkdir(parents=True)
        (policies / "request.yaml").write_text(yaml.safe_dump(_POLICY))
        self._place = f"127.0.0.1:{unused_port()}"
        file = folder / "cerbos.yaml"
        file.write_text(yaml.safe_dump(_cerbos(self._place, policies, logged=logged)))
        command = (str(binaries[0]), "server", "--config", str(file))
        ready = "Starting gRPC server"
        self.program = running.enter_context(started(*command, ready=ready, at=self._place))

    def target(self, resources: int) -> Target:
        """A call that asks about so many requests. Raises RuntimeError where it is not allowed."""
        with grpc.insecure_channel(self._place) as channel:
            pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
            message = json_format.Parse(
                json.dumps(_asked(resources)),
                _class(pool, "cerbos.request.v1.CheckResourcesRequest")(),
            ).SerializeToString()
            call: Any = channel.unary_unary(_CHECK)  # Without serializers it takes and gives bytes.
            answer = call(message, timeout=30)
            found = _class(pool, "cerbos.response.v1.CheckResourcesResponse").FromString(answer)
        effects = [
            dict(result["actions"]) for result in json_format.MessageToDict(found)["results"]
        ]
        if effects != [{"send": "EFFECT_ALLOW"}] * resources:
            raise RuntimeError(f"Cerbos decided otherwise: {effects[:3]}")
        return grpc_target(self._place, _CHECK, message, len(answer))


def _class(pool: descriptor_pool.DescriptorPool, name: str) -> Any:
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def _cerbos(place: str, policies: Path, *, logged: bool) -> Mapping[str, Any]:
    audit = {
        "enabled": logged,
        "accessLogsEnabled": False,
        "decisionLogsEnabled": True,
        "backend": "file",
        "file": {"path": str(policies.parent / "audit.log")},
    }
    return {
        "server": {
            "grpcListenAddr": place,
            "httpListenAddr": f"127.0.0.1:{unused_port()}",
            "requestLimits": {"maxActionsPerResource": 1, "maxResourcesPerRequest": 100},
        },
        "storage": {"driver": "disk", "disk": {"directory": str(policies)}},
        "telemetry": {"disabled": True},
        "audit": audit,
    }


def _asked(resources: int) -> Mapping[str, Any]:
    attributes = json_format.MessageToDict(traffic.asked("key_benchmark"))
    return {
        "requestId": "benchmark-1",
        "principal": {"id": "key_benchmark", "roles": ["caller"]},
        "resources": [
            {
                "actions": ["send"],
                "resource": {"kind": "request", "id": str(number), "attr": attributes},
            }
            for number in range(resources)
        ],
    }
