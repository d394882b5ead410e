"""What both commands, policyd and policyd-gateway, do to start: settings, log and event loop.

Settings come from flags, else the environment, else the --config file. Click keeps that order; here
is what it leaves open: which names a command takes, and what the values must be.
"""

import difflib
import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from policyd.errors import InvalidArgument, PolicydError, SettingsError

_Command = TypeVar("_Command", bound=Callable[..., Any])
_LEVELS = ("debug", "info", "warning", "error")
_ARGUMENTS = "policyd.arguments"
# Not settings: what tests read, what Kubernetes sets for services of our name, and CGI.
_FOREIGN = re.compile(r"TEST_.*|(.*_)?(SERVICE_(HOST|PORT)(_.*)?|PORT(_\d+_.*)?)|INTERFACE")


class Options:
    """Makes click options that also read `PREFIX_*` and --config, and knows their names.

    A server refuses every name that it does not take itself. The other commands of its program run
    in its environment, and by its file: they refuse what no command of the program takes.
    `meant` says what to use in place of names that are no setting, or none of a server's.
    """

    def __init__(
        self, prefix: str, meant: Mapping[str, str] | None = None, like: tuple[str, ...] = ()
    ) -> None:
        self._prefix = prefix + "_"
        self._meant = meant or {}
        self._like = like
        """Prefixes that are taken for ours, and are not."""
        self._known = {"config": "config"}
        """What click calls each setting, by its name."""
        self._many: set[str] = set()

    @property
    def variables(self) -> frozenset[str]:
        """What the environment can set."""
        return frozenset(self._prefix + name.upper() for name in self._known)

    def option(self, *names: str, **attributes: Any) -> Callable[[_Command], _Command]:
        """A click option. Its default is shown, unless it is none or a flag's."""
        name = names[0].partition("/")[0].removeprefix("--").replace("-", "_")
        self._known[name] = next((word for word in names if word[0] != "-"), name)
        if attributes.get("multiple"):
            self._many.add(name)
        has_default = attributes.get("default") is not None and not attributes.get("is_flag")
        envvar = self._prefix + name.upper()
        return click.option(
            *names, envvar=envvar, show_envvar=True, show_default=has_default, **attributes
        )

    def foresee(self, *names: str) -> None:
        """Know the settings of commands that are loaded when they are called."""
        for name in names:
            self._known.setdefault(name, name)

    def config(self, command: _Command) -> _Command:
        """The option --config of a command that is no server."""
        return self._config(command, self._read_config)

    def server_config(self, command: _Command) -> _Command:
        """The option --config of a server, which refuses what others take."""
        return self._config(command, self._read_server_config)

    def _config(self, command: _Command, read: Callable[..., None]) -> _Command:
        add = click.option(
            "--config",
            type=click.Path(path_type=Path, dir_okay=False),
            envvar=self._prefix + "CONFIG",
            show_envvar=True,
            is_eager=True,  # Before the options that it sets.
            expose_value=False,
            callback=read,
            help="YAML file with settings, named as the options are.",
        )
        return add(command)

    def log_level(self, command: _Command) -> _Command:
        """The option --log-level."""
        levels = click.Choice(_LEVELS)
        add = self.option("--log-level", default="info", type=levels, help="How much is logged.")
        return add(command)

    def check_environment(self, environment: Mapping[str, str] | None = None) -> None:
        """Raises SettingsError for a variable with our prefix that is no setting of ours."""
        for variable in os.environ if environment is None else environment:
            for prefix in (self._prefix, *self._like):
                self._check_variable(variable, prefix)

    def _check_variable(self, variable: str, prefix: str) -> None:
        name = variable[len(prefix) :]
        if variable.upper() != prefix + name.upper() or _FOREIGN.fullmatch(name.upper()):
            return
        is_ours = variable.startswith(prefix)
        if variable != self._prefix + name.upper() and name.lower() in self._known:
            hint = f"did you mean {self._prefix}{name.upper()}?"
            raise SettingsError(f"the environment sets {variable}, which is not read: {hint}")
        if is_ours and prefix == self._prefix:
            self._refuse_unknown(name.lower(), variable, "the environment")

    def _read_server_config(
        self, context: click.Context, parameter: click.Parameter, path: Path | None
    ) -> None:
        own = {one.envvar for one in context.command.params}
        for variable in os.environ:
            name = variable.removeprefix(self._prefix).lower()
            if variable not in own and name in self._known and variable.startswith(self._prefix):
                self._refuse_others(context, name, variable, "the environment")
        for spelling in _read_yaml(path) if path else ():
            name = _name(spelling)
            if self._prefix + name.upper() not in own and name in self._known:
                self._refuse_others(context, name, spelling, f"--config {path}")
        self._read_config(context, parameter, path)

    def _refuse_others(self, context: click.Context, name: str, spelling: str, where: str) -> None:
        others = [*_commands_that_take(context.find_root(), self._prefix + name.upper())]
        whose = ", ".join(others[:3]) + (" and others" if others[3:] else "")
        hint = self._meant.get(name) or f"it is for {whose}, so take it out here"
        raise SettingsError(
            f"{where} sets {spelling}, which means nothing to {context.command_path}: {hint}"
        )

    def _read_config(self, context: click.Context, _: click.Parameter, path: Path | None) -> None:
        if path is None:
            return
        given: dict[str, Any] = {}
        for spelling, value in _read_yaml(path).items():
            name = _name(spelling)
            self._refuse_unknown(name, spelling, f"--config {path}")
            if name == "config" or self._known[name] in given:
                problem = "names no other file" if name == "config" else f"sets {spelling} twice"
                raise SettingsError(f"--config {path} {problem}: take the line out")
            takes_many = name in self._many
            if not value or not isinstance(value, list if takes_many else str):
                kind = "a list" if takes_many else "one value"
                raise SettingsError(f"--config {path} sets {spelling} wrong: it takes {kind}")
            given[self._known[name]] = value
        context.default_map = {**(context.default_map or {}), **given}

    def _refuse_unknown(self, name: str, spelling: str, where: str) -> None:
        if name in self._known:
            return

        def spelt(known: str) -> str:
            return self._prefix + known.upper() if spelling.startswith(self._prefix) else known

        # Without the prefix, which makes any two names alike.
        if close := difflib.get_close_matches(name, self._known, n=1):
            hint = f"did you mean {spelt(close[0])}?"
        else:
            hint = f"there are {', '.join(map(spelt, sorted(self._known)))}"
        hint = self._meant.get(name, hint)
        raise SettingsError(f"{where} sets {spelling}, which is no setting: {hint}")


def _name(spelling: str) -> str:
    return spelling.replace("-", "_")


def _commands_that_take(context: click.Context, variable: str) -> Iterator[str]:
    """The commands of a program with an option that reads `variable`."""
    waiting = [(context.command_path, context.command)]
    for path, command in waiting:
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                one = command.get_command(context, name)
                waiting += [(f"{path} {name}", one)] if one is not None else []
        elif any(option.envvar == variable for option in command.params):
            yield path


class _Loader(yaml.BaseLoader):
    """Words stay words: YAML would read `off` as false, and options know best what they take."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"it sets {name} twice: take one of them out")
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=_Loader)  # noqa: S506  # It makes strings only.
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"--config {path} cannot be read: {error}") from None
    if not content:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"--config {path} must hold lines of NAME: VALUE")
    return {str(name): value for name, value in content.items()}


class ServerCommand(click.Command):
    """A command that can be read once more as it was given, its --config file being another now."""

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
    return again.params


class Group(click.Group):
    """A group of commands that says what went wrong, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """See click.Group."""
        try:
            return super().invoke(ctx)
        except (SettingsError, InvalidArgument) as error:
            raise click.UsageError(str(error)) from error
        except PolicydError as error:
            raise click.ClickException(str(error)) from error


class LazyGroup(Group):
    """A group whose commands may stand in modules that are loaded when they are called, as
    "MODULE:NAME" by the command's name in `lazy`."""

    def __init__(self, *arguments: Any, lazy: Mapping[str, str], **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See click.Group."""
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See click.Group."""
        if cmd_name in self._lazy and cmd_name not in self.commands:
            module, _, name = self._lazy[cmd_name].partition(":")
            self.add_command(getattr(importlib.import_module(module), name), cmd_name)
        return super().get_command(ctx, cmd_name)
