"""`policyd policies`: which policies there are, and how each is set and overridden."""

import textwrap
from typing import Any

import click

from policyd.cli import options
from policyd.engine.policy import Policy
from policyd.policies import TABLE

_WIDTH = 100


@click.command()
@options.as_json
@options.OPTIONS.config
def policies(as_json: bool) -> None:
    """List the policies: what each does, its setting, its header, and the flag that it gives.

    policyd keys set ID --policy NAME=MODE:VALUE sets one for an API key; policyd explain and
    policyd simulate try it first.
    """
    if as_json:
        options.print_json([_as_dict(policy) for policy in TABLE.policies])
    else:
        click.echo("\n\n".join(map(_as_text, TABLE.policies)))


def _as_dict(policy: Policy) -> dict[str, Any]:
    return {
        "name": policy.name,
        "title": policy.title,
        "hint": policy.hint,
        "setting": policy.kind.usage,
        "value": policy.kind.value_usage or None,
        "header": policy.header or None,
        "header_value": policy.kind.header_usage if policy.header else None,
        "operations": sorted(policy.operations),
        "flag": policy.flag,
    }


def _as_text(policy: Policy) -> str:
    rows = [
        ("setting", policy.kind.usage),
        *([("value", policy.kind.value_usage)] if policy.kind.value_usage else []),
        ("header", f"{policy.header}: {policy.kind.header_usage}" if policy.header else "none"),
        ("operations", ", ".join(sorted(policy.operations)) or "all in scope"),
        ("flag", policy.flag),
    ]
    lines = [f"{policy.name}: {policy.title}", textwrap.indent(policy.hint, "  ")]
    for name, text in rows:
        hanging = " " * 14
        lines.append(textwrap.fill(f"  {name:12}{text}", _WIDTH, subsequent_indent=hanging))
    return "\n".join(lines)
