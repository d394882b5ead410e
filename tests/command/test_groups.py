"""Groups of commands, and command lines that are read once more."""

import click
import pytest

from policyd.command.groups import ServerCommand, read_again
from policyd.errors import SettingsError


def test_another_version_is_installed() -> None:
    """If a module can no longer be imported, that is an error, which the server survives."""

    def gone(*_: object) -> None:
        raise ImportError("no module named policyd.cli.older")

    command = ServerCommand("serve", params=[click.Option(["--name"])])
    context = command.make_context("serve", ["--name", "x"])
    assert read_again(context) == {"name": "x"}
    command.params[0].callback = gone
    with pytest.raises(SettingsError, match="restart it"):
        read_again(context)
