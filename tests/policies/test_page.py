"""docs/policies.md lists the policies as they are declared."""

import re
from pathlib import Path

from policyd.engine.policy import Policy
from policyd.policies import TABLE

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")


def row(policy: Policy) -> str:
    """A policy's row of the page's table."""
    cells = (
        policy.title,
        f"`{policy.name}`",
        policy.hint,
        policy.kind.usage,
        f"`{policy.header}`: {policy.kind.header_usage}" if policy.header else "none",
        ", ".join(f"`{one}`" for one in sorted(policy.operations)) or "all in scope",
        f"`{policy.flag}`",
    )
    return f"| {' | '.join(cells)} |"


def test_the_table() -> None:
    """The page's table has a row for each policy, in their order."""
    table = PAGE.partition("\n## The policies\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if re.match(r"\|[^-]*`", line)]
    assert rows == [row(policy) for policy in TABLE.policies]


def test_the_order_of_the_example() -> None:
    """The example's order is behind those of all policies there are."""
    assert f"order={max(policy.order for policy in TABLE.policies) + 10}" in PAGE
