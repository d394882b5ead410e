"""Groups of commands: how they report errors, load a command only when it is called, and read a
server's command line once more."""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import click
from click.exceptions import Exit

from policyd.errors import InvalidArgument, PolicydError, SettingsError
from policyd.extras import INTERRUPTED

_ARGUMENTS = "policyd.arguments"


class ServerCommand(click.Command):
    """A command whose arguments can be read once more, with --config and environment as of then."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click.Command."""
        ctx.meta[_ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)


def read_again(context: click.Context) -> dict[str, Any]:
    """The parameters that a ServerCommand would be called with now. Raises SettingsError."""
    arguments = [*context.meta[_ARGUMENTS]]
    try:
        again = context.command.make_context(context.info_name, arguments, context.parent)
    except click.ClickException as problem:
        raise SettingsError(problem.format_message()) from None
    except (ImportError, AttributeError) as problem:
        # Modules are loaded late, and another version may be installed by then.
        raise SettingsError(
            f"another version is installed, which this one cannot read ({problem}): restart it"
        ) from None
    return again.params


class Group(click.Group):
    """A group of commands that says what went wrong, without a traceback. Ctrl-C is not an error,
    and ends it without a message."""

    def make_context(self, *arguments: Any, **attributes: Any) -> click.Context:
        """See click.Group."""
        try:
            return super().make_context(*arguments, **attributes)
        except KeyboardInterrupt:
            raise Exit(INTERRUPTED) from None

    def invoke(self, ctx: click.Context) -> Any:
        """See click.Group."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Exit(INTERRUPTED) from None
        except (SettingsError, InvalidArgument) as error:
            raise click.UsageError(str(error)) from error
        except PolicydError as error:
            raise click.ClickException(str(error)) from error


class Lazy(NamedTuple):
    """A command that is loaded when it is called."""

    module: str
    """The module that has the command, as `name`."""
    name: str
    help: str
    """The first sentence of its help, for the list of commands."""


class LazyGroup(Group):
    """A group whose commands are loaded when they are called, so that none waits for the imports of
    the others. The list of commands loads none."""

    def __init__(self, *arguments: Any, lazy: Mapping[str, Lazy], **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See click.Group."""
        return sorted({*super().list_commands(ctx), *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See click.Group."""
        if cmd_name in self.lazy and cmd_name not in self.commands:
            module, name, _ = self.lazy[cmd_name]
            self.add_command(getattr(importlib.import_module(module), name), cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click.Group."""
        listed = click.Group(
            commands={
                name: click.Command(name, help=self.lazy[name].help)
                if name in self.lazy
                else self.commands[name]
                for name in self.list_commands(ctx)
            }
        )
        listed.format_commands(ctx, formatter)

    def load(self) -> None:
        """Load all of its commands, and the options that they have."""
        context = click.Context(self)
        for name in self.list_commands(context):
            self.get_command(context, name)
