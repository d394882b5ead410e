"""Where settings come from: flags, else the environment, else the --config file.

Click keeps that order. This module makes click's options of what settings.py declares, and refuses
names in the environment and the file that no command reads.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from policyd.command.click_options import Declared, attributes_of, variables_of
from policyd.command.process import JSON, TEXT
from policyd.command.settings import Setting, settings_of
from policyd.errors import SettingsError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Command = TypeVar("_Command", bound=Callable[..., Any])
_LEVELS = ("debug", "info", "warning", "error")
# Not settings: what tests read, what Kubernetes sets for services of our name, and CGI.
_FOREIGN = re.compile(r"TEST_.*|(.*_)?(SERVICE_(HOST|PORT)(_.*)?|PORT(_\d+_.*)?)|INTERFACE")


class Options:
    """Makes click options that also read `PREFIX_*` and --config, and knows their names.

    A server refuses every name that it does not take itself. The other commands of its program run
    in its environment, and with its file: they refuse only what no command of the program takes.
    `meant` gives a hint for names that are no setting, or none of a server's: for these names, and
    for longer ones whose first word is one of them.
    """

    def __init__(
        self,
        prefix: str,
        meant: Mapping[str, str] | None = None,
        *,
        old: str = "",
        others: tuple[str, ...] = (),
    ) -> None:
        self._prefix = prefix + "_"
        self._meant = meant or {}
        self._prefixes = (self._prefix, f"{old}_") if old else (self._prefix,)
        """Ours, and an older one. The older one is a common word: other programs may have variables
        that begin with it, so those that are no setting of ours are left alone."""
        self._others = others
        """Prefixes that begin with ours, and belong to another program."""
        self._known = {"config": "config"}
        """What click calls each setting, by its name."""
        self._many: set[str] = set()
        self._load_others: Callable[[], object] | None = None

    def load_others_by(self, load: Callable[[], object]) -> None:
        """Have `load` load the commands that are not loaded yet, once an unknown name is met."""
        self._load_others = load

    @property
    def variables(self) -> frozenset[str]:
        """The environment variables that are settings."""
        self._load_all()
        return frozenset(self._prefix + name.upper() for name in self._known)

    def _load_all(self) -> None:
        load, self._load_others = self._load_others, None
        if load is not None:
            load()

    def _knows(self, name: str) -> bool:
        if name not in self._known:
            self._load_all()
        return name in self._known

    def option(self, *names: str, **attributes: Any) -> Callable[[_Command], _Command]:
        """A click option. Its default is shown, unless it has none or is a flag."""
        name = names[0].partition("/")[0].removeprefix("--").replace("-", "_")
        self._known[name] = next((word for word in names if word[0] != "-"), name)
        if attributes.get("multiple"):
            self._many.add(name)
        has_default = attributes.get("default") is not None and not attributes.get("is_flag")
        envvar = self._variables(name)
        shown = {"envvar": envvar, "show_envvar": True, "show_default": has_default}
        return click.option(*names, cls=Declared, **shown, **attributes)

    def _variables(self, name: str) -> str | list[str]:
        """The variables that set an option. Of several, the first counts."""
        names = [prefix + name.upper() for prefix in self._prefixes]
        return names if names[1:] else names[0]

    def settings(self, kind: "type[DataclassInstance]") -> Callable[[_Command], _Command]:
        """The options of all settings that a class declares."""
        made = [add for one in settings_of(kind) for add in self._of(one)]

        def add_all(command: _Command) -> _Command:
            for add in reversed(made):
                command = add(command)
            return command

        return add_all

    def setting(
        self, kind: "type[DataclassInstance]", field: str, **other: Any
    ) -> Callable[[_Command], _Command]:
        """The option of one setting of a class, for a command that shares it; with `other`
        attributes where they differ."""
        [one] = (one for one in settings_of(kind) if one.field == field)
        return self.option(one.flag, **attributes_of(one) | other)

    def _of(self, one: Setting) -> Iterator[Callable[[Any], Any]]:
        if one.file_help:
            file = click.Path(path_type=Path, dir_okay=False)
            yield self.option(one.file_flag, type=file, help=one.file_help)
        if one.help:
            names = f"{one.flag}/--no-{one.flag.removeprefix('--')}" if one.switch else one.flag
            yield self.option(names, **attributes_of(one))

    def config(self, command: _Command) -> _Command:
        """The option --config of a command that is not a server."""
        return self._config(command, self._read_config)

    def server_config(self, command: _Command) -> _Command:
        """The option --config of a server, which refuses the settings of other commands."""
        return self._config(command, self._read_server_config)

    def _config(self, command: _Command, read: Callable[..., None]) -> _Command:
        add = click.option(
            "--config",
            type=click.Path(path_type=Path, dir_okay=False),
            envvar=self._variables("config"),
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

    def log_format(self, command: _Command) -> _Command:
        """The option --log-format."""
        text = "json: one object on each line, for log collectors."
        add = self.option("--log-format", default=TEXT, type=click.Choice((TEXT, JSON)), help=text)
        return add(command)

    def check_environment(self, environment: Mapping[str, str] | None = None) -> None:
        """Raises SettingsError for a variable with our prefix that is no setting of ours. One with
        the older prefix that does not resemble a setting either only has a warning on stderr."""
        for variable in os.environ if environment is None else environment:
            for prefix in self._prefixes:
                self._check_variable(variable, prefix)

    def _check_variable(self, variable: str, prefix: str) -> None:
        name = variable[len(prefix) :]
        is_other = variable.upper().startswith(self._others)
        if variable.upper() != prefix + name.upper() or _FOREIGN.fullmatch(name.upper()):
            return
        if is_other or (
            variable.startswith(prefix) and name.isupper() and self._knows(name.lower())
        ):
            return
        if self._knows(name.lower()):
            hint = f"did you mean {self._prefix}{name.upper()}?"
            raise SettingsError(f"the environment sets {variable}, which is not read: {hint}")
        is_strict = prefix == self._prefix or self._hint(name.lower()) or self._close(name.lower())
        if is_strict and variable.startswith(prefix):
            self._refuse_unknown(name.lower(), variable, "the environment")
        elif variable.startswith(prefix):
            click.echo(
                f"The environment sets {variable}, which is no setting and is not read; settings "
                f"begin with {self._prefix}.",
                err=True,
            )

    def _read_server_config(
        self, context: click.Context, parameter: click.Parameter, path: Path | None
    ) -> None:
        own = {variable for one in context.command.params for variable in variables_of(one)}
        for variable in os.environ:
            prefix = next(filter(variable.startswith, self._prefixes), "")
            name = variable.removeprefix(prefix).lower()
            if prefix and variable not in own and self._knows(name):
                self._refuse_others(context, name, variable, "the environment")
        for spelling in _read_yaml(path) if path else ():
            name = _name(spelling)
            if self._prefix + name.upper() not in own and self._knows(name):
                self._refuse_others(context, name, spelling, f"--config {path}")
        self._read_config(context, parameter, path)

    def _refuse_others(self, context: click.Context, name: str, spelling: str, where: str) -> None:
        others = [*_commands_that_take(context.find_root(), self._prefix + name.upper())]
        whose = ", ".join(others[:3]) + (" and others" if others[3:] else "")
        hint = self._hint(name) or f"it is for {whose}, so take it out here"
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
                problem = (
                    "cannot name another file" if name == "config" else f"sets {spelling} twice"
                )
                raise SettingsError(f"--config {path} {problem}: take the line out")
            takes_many = name in self._many
            if not value or not isinstance(value, list if takes_many else str):
                kind = "a list" if takes_many else "one value"
                raise SettingsError(f"--config {path} sets {spelling} wrong: it takes {kind}")
            given[self._known[name]] = value
        context.default_map = {**(context.default_map or {}), **given}

    def _refuse_unknown(self, name: str, spelling: str, where: str) -> None:
        if self._knows(name):
            return

        def spelt(known: str) -> str:
            if spelling.startswith(self._prefixes):
                return self._prefix + known.upper()
            return known.replace("_", "-")

        if close := self._close(name):
            hint = f"did you mean {spelt(close)}?"
        else:
            hint = f"there are {', '.join(map(spelt, sorted(self._known)))}"
        hint = self._hint(name) or hint
        raise SettingsError(f"{where} sets {spelling}, which is no setting: {hint}")

    def _close(self, name: str) -> str:
        """The setting that a name resembles, both without prefix, which makes any two alike."""
        self._load_all()
        return next(iter(difflib.get_close_matches(name, self._known, n=1)), "")

    def _hint(self, name: str) -> str:
        return self._meant.get(name) or self._meant.get(name.partition("_")[0], "")


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
        elif any(variable in variables_of(option) for option in command.params):
            yield path


def _read_yaml(path: Path) -> dict[str, Any]:
    # Imported late: most commands are given no file.
    import yaml

    from policyd.command.yaml_words import Loader

    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=Loader)  # noqa: S506  # It makes strings only.
    except OSError as error:
        raise SettingsError(f"--config {path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"--config {path} cannot be read: {error}") from None
    except RecursionError:
        raise SettingsError(f"--config {path} cannot be read: it is nested too deeply") from None
    if not content:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"--config {path} must hold lines of NAME: VALUE")
    return {str(name): value for name, value in content.items()}
