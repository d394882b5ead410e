"""The example of docs/policies.md: one file is a policy, and no other line changes.

The page's two blocks are put into a copy of policyd, which the programs below run in place of ours.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from policyd.v1 import admin_pb2
from policyd.v1.admin_pb2_grpc import AdminServiceStub
from policyd.v1.policy_pb2 import DECISION_DENY, EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.consoles import Visitor
from tests.support.processes import Policyd, environment, run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
NAME, TITLE, FLAG = "pinned_models", "Pinned Models", "policy_pinned_models"


def block(language: str) -> str:
    """The one block of the page in this language."""
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@dataclass
class Copy:
    """A copy of policyd and its tests, with the example in it."""

    folder: Path
    database: str = ""

    @property
    def variables(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.folder)}

    def run(self, *words: str, fails: bool = False) -> str:
        """What `policyd …` of the copy prints."""
        done = run("policyd", *words, env=self.variables)
        assert bool(done.returncode) is fails, done.stderr
        return (done.stderr if fails and not done.stdout else done.stdout).decode()

    def json(self, *words: str, fails: bool = False) -> Any:
        """What it prints for machines, of its database."""
        out = self.run(*words, "--database-url", self.database, "--json", fails=fails)
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    folder = tmp_path_factory.mktemp("copy")
    skipped = shutil.ignore_patterns("__pycache__", "node_modules")
    shutil.copytree(ROOT / "policyd", folder / "policyd", ignore=skipped)
    (folder / "policyd" / "policies" / f"{NAME}.py").write_text(block("python"))
    return Copy(folder)


@pytest.fixture(scope="module")
def server(copy: Copy) -> Iterator[Policyd]:
    data = copy.folder / "data"
    data.mkdir()
    # Its processes look in the folder that they are started in, before they look in any other.
    flags = ("--console", "127.0.0.1:0")
    running = Policyd(data, *flags, env=copy.variables, cwd=copy.folder)
    copy.database = running.database_url
    yield running
    assert running.stop() == 0, running.errors


@pytest.fixture(scope="module")
def key(copy: Copy, server: Policyd) -> dict[str, Any]:
    """A key that enforces the policy, and has been asked about once."""
    made: dict[str, Any]
    [made] = copy.json("keys", "create", "app", "--policy", f"{NAME}=audit")
    [held] = copy.json("keys", "set", made["id"], "--policy", f"{NAME}=enforce")
    assert held["policies"][NAME] == {"mode": "enforce", "value": "", "override": None}
    server.reach(held["revision"])
    with grpc.insecure_channel(server.grpc) as channel:
        answer = PolicyServiceStub(channel).Evaluate(
            EvaluateRequest(
                key=made["key"],
                method="POST",
                path="/v1/chat/completions",
                model="gpt-4o",
                has_user=True,
            ),
            timeout=30,
        )
    assert answer.decision == DECISION_DENY
    assert [flag.type for flag in answer.flags] == [FLAG]
    return made | {"decision": answer.decision_id}


def test_its_length() -> None:
    """A policy is a short file."""
    assert len(block("python").splitlines()) < 40


def test_it_is_listed(copy: Copy) -> None:
    """`policyd policies` lists it, with its header and its flag."""
    text = copy.run("policies")
    assert f"{NAME}: {TITLE}" in text
    assert "x-usagepanda-pinned-models: true or false" in text
    assert f"flag        {FLAG}" in text


def test_it_is_explained(copy: Copy, key: dict[str, Any]) -> None:
    """`policyd explain` tells its verdict, and tries it on a key."""
    body = copy.folder / "body.json"
    body.write_text('{"model": "gpt-4o-2024-08-06", "messages": []}')
    words = ("--key", key["key"], "--method", "POST", "--path", "/v1/chat/completions")
    [kept] = copy.json("explain", *words, "--body", str(body))
    assert [one["verdict"] for one in kept["policies"] if one["policy"] == NAME] == ["kept"]
    body.write_text('{"model": "gpt-4o", "messages": []}')
    [denied] = copy.json("explain", *words, "--body", str(body), fails=True)
    assert "Config set to block models without a date: gpt-4o" in denied["denial"]["body"]
    [tried] = copy.json("explain", *words, "--body", str(body), "--policy", f"{NAME}=audit")
    assert (tried["decision"], tried["flags"]) == ("allow", [FLAG])


def test_its_settings_are_checked(copy: Copy, key: dict[str, Any]) -> None:
    """A setting that makes no sense is rejected, with the reason."""
    words = ("keys", "set", key["id"], "--policy", f"{NAME}=enforce:5")
    text = copy.run(*words, "--database-url", copy.database, fails=True)
    assert f"{NAME}: it takes no value" in text


async def test_the_console_has_it(copy: Copy, server: Policyd, key: dict[str, Any]) -> None:
    """The console has a panel for its setting, its words in the log, and a filter for its flag."""
    token = (server.folder / "admin-token").read_text().strip()
    async with Visitor(server.console) as visitor:
        await visitor.sign_in(token)
        panel = (await visitor.get(f"/keys/{key['id']}")).text
        log = (await visitor.get(f"/logs?flag={FLAG}")).text
        details = (await visitor.get(f"/logs/{key['decision']}")).text
    assert TITLE in panel
    assert "Requests must name a version of a model with its date" in panel
    assert f'value="{FLAG}"' in log
    assert key["decision"] in log
    assert "named a model without the date of its version" in details


def test_the_log_has_it(copy: Copy, server: Policyd, key: dict[str, Any]) -> None:
    """The log is filtered by it, and tells what it found."""
    [found] = copy.json("logs", "list", "--policy", NAME)
    assert found["id"] == key["decision"]
    text = copy.run("logs", "show", found["id"], "--database-url", copy.database)
    assert f"{NAME}=enforce" in text
    token = (server.folder / "admin-token").read_text().strip()
    with grpc.insecure_channel(server.admin) as channel:
        listed = AdminServiceStub(channel).ListDecisions(
            admin_pb2.ListDecisionsRequest(flag=FLAG),
            metadata=(("authorization", f"Bearer {token}"),),
            timeout=30,
        )
    [logged] = listed.decisions
    assert NAME in [one.policy for one in logged.results]


def test_it_is_simulated(copy: Copy, key: dict[str, Any]) -> None:
    """The simulation decides logged requests by it."""
    simulate = ("simulate", key["id"], "--policy")
    [enforced] = copy.json(*simulate, f"{NAME}=enforce")
    [audited] = copy.json(*simulate, f"{NAME}=audit")
    assert (enforced["requests"], enforced["blocked"], audited["blocked"]) == (1, 1, 0)


def test_its_cases(copy: Copy) -> None:
    """The example's table of cases runs, and is complete, beside those of all other policies."""
    skipped = shutil.ignore_patterns("__pycache__", "node_modules")
    shutil.copytree(ROOT / "tests", copy.folder / "tests", ignore=skipped)
    shutil.copy(ROOT / "pyproject.toml", copy.folder)
    (copy.folder / "tests" / "decisions" / f"{NAME}.yaml").write_text(block("yaml"))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider", "-p", "no:xdist"),
            *("tests/engine/test_decisions.py", "tests/policies/test_complete.py"),
        ],
        cwd=copy.folder,
        env=environment(copy.variables),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode()
    passed = [line for line in done.stdout.decode().splitlines() if "PASSED" in line]
    assert sum(f"test_case[{NAME}: " in line for line in passed) == block("yaml").count("- it:")
    assert any(f"test_complete.py::test_cases[{NAME}]" in line for line in passed)
