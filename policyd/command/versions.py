"""The option --version, and what a server says about its version as it starts."""

from collections.abc import Callable
from typing import Any

import click

from policyd.build_info import commit, version


def version_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option --version of a program."""
    return click.option(
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_say,
        help="Show the version and the commit, and exit.",
    )(command)


def _say(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        built = commit()
        click.echo(
            f"{context.info_name}, version {version()}" + (f", commit {built}" * bool(built))
        )
        context.exit()


def build_words() -> str:
    """The version and the commit, for the line that says that a server is ready."""
    built = commit()
    return f"version={version()}" + (f" commit={built}" if built else "")
