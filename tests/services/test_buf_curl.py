"""policyd, called without its .proto files, by reflection, as grpcurl and similar tools do."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.processes import BIN, Policyd

GOLDEN = Path(__file__).parents[1] / "golden" / "no_user.json"


def buf_curl(policyd: Policyd, method: str, message: dict[str, Any]) -> dict[str, Any]:
    """The answer to `buf curl`, run as docs/callers.md describes."""
    command: list[str | Path] = [
        BIN / "buf",
        "curl",
        "--protocol",
        "grpc",
        "--http2-prior-knowledge",
    ]
    url = f"http://{policyd.grpc}/{method}"
    done = subprocess.run(
        [*command, "-d", json.dumps(message), url], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_evaluate(policyd: Policyd) -> None:
    """Evaluate answers with the denial."""
    key = policyd.create_key("enforce")
    answer = buf_curl(policyd, "policyd.v1.PolicyService/Evaluate", {"key": key, "hasUser": False})
    assert answer["decision"] == "DECISION_DENY"
    assert base64.b64decode(answer["denial"]["body"]) == GOLDEN.read_bytes()


def test_check(policyd: Policyd) -> None:
    """Envoy's Check answers with the denial."""
    key = policyd.create_key("enforce")
    http = {
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": {"x-usagepanda-api-key": key},
        "body": "{}",
    }
    message = {"attributes": {"request": {"http": http}}}
    answer = buf_curl(policyd, "envoy.service.auth.v3.Authorization/Check", message)
    assert answer["deniedResponse"]["status"] == {"code": "UnprocessableEntity"}
    assert answer["deniedResponse"]["body"].encode() == GOLDEN.read_bytes()


def test_health(policyd: Policyd) -> None:
    """Probes get the health of the server and of each service."""
    for service in ("", "policyd.v1.PolicyService", "envoy.service.auth.v3.Authorization"):
        answer = buf_curl(policyd, "grpc.health.v1.Health/Check", {"service": service})
        assert answer == {"status": "SERVING"}
