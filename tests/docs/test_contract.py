"""docs/contract.md describes what the code does: its endpoints, its denial, its flag."""

import re
from pathlib import Path

from policyd.engine import denial
from policyd.engine.endpoints import ENDPOINTS, resolve
from policyd.engine.places import Endpoint
from policyd.policies import TABLE

ROOT = Path(__file__).parents[2]
CONTRACT = (ROOT / "docs" / "contract.md").read_text()


def section(number: int) -> str:
    """The text of a section."""
    return CONTRACT.partition(f"\n## {number}. ")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The rows of the tables in `text`: the texts in backticks, cell by cell."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    return [line.strip("|").split(" | ") for line in lines]


def test_endpoints() -> None:
    """Section 2 lists the endpoints of the code and their places."""
    found = {}
    for paths, places in rows(section(2)):
        for path in re.findall(r"`(/[^`]*)`", paths):
            found[path.replace("/ID/", "/{session_id}/")] = set(re.findall(r"`([^`]+)`", places))
    submit = found.pop("/images/generations:submit")
    assert found == {path: _places(one) for path, one in ENDPOINTS.items()}
    assert submit == {"/images/generations"}
    assert (
        resolve("POST", "/images/generations:submit").endpoint == ENDPOINTS["/images/generations"]
    )


def _places(endpoint: Endpoint) -> set[str]:
    header = {"OpenAI-Safety-Identifier"} if endpoint.safety_header else set()
    if endpoint.safety_in_session:
        return header | {f"session.{one}" for one in endpoint.identifiers}
    return header | set(endpoint.identifiers)


def test_denial() -> None:
    """Section 4 states the headers and the body of a denial, to the byte."""
    headers, body = re.findall(r"```\n(.*?)\n```", section(4), re.DOTALL)
    assert headers == "\n".join(f"{name}: {value}" for name, value in denial.HEADERS)
    assert body == (ROOT / "tests" / "golden" / "no_user.json").read_text()


def test_flag() -> None:
    """Section 6 states the flag's type and description."""
    original = TABLE.original
    assert f"`{original.flag}`" in section(6)
    assert f"`{original.description}`" in section(6)


def test_policies() -> None:
    """Section 7 lists the policies of the code in their order, with headers, flags and kinds."""
    table = [row for row in rows(section(7)) if len(row) == 5]
    assert len(table) == len(TABLE.policies)
    for (name, header, _, flag, _), policy in zip(table, TABLE.policies, strict=True):
        assert policy.title in name
        assert f"`{policy.name}`" in name
        assert f"`{policy.flag}`" in flag
        if not policy.is_original:  # Section 1 has the header of that one.
            assert (f"`{policy.header}`" in header) == bool(policy.header)
