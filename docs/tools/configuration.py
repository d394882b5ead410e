"""Prints docs/configuration.md: every setting, out of the options that the commands declare.

`make docs` runs it, and a test compares what it prints with the file. The settings of the servers
are declared in policyd/settings.py and gateway/settings.py, the options of other commands beside
the commands in policyd/cli.
"""

from collections.abc import Iterator, Mapping, Sequence

import click

from gateway.cli import main as gateway
from policyd.cli.main import main as policyd
from policyd.command.click_options import Declared, variables_of

_HEAD = """\
<!-- Generated from policyd/settings.py, gateway/settings.py and policyd/cli by `make docs`. Do not
edit: change the declarations there. -->

# Configuration

A setting has one name in four spellings: the flag `--log-retention`, the environment variable
`POLICYD_LOG_RETENTION`, the key `log-retention` (or `log_retention`) in the `--config` file, and
its row here. A flag wins over the environment, the environment over the file, and the file over the
default. Settings of `policyd` have the prefix `POLICYD_`, those of `policyd-gateway`
`POLICYD_GATEWAY_`; the gateway also reads its settings' names with the older prefix `GATEWAY_`.

The file is YAML with one `KEY: VALUE` a line:

```yaml
database-url: postgresql+psycopg://policyd@db.internal/policyd
console: 127.0.0.1:8081
default-mode: audit
log-retention: 30
```

In the environment and in the file, a flag that takes no value is turned on by `true` and off by
`false`.

A size or a time is a number of the unit that its row names, or has a unit of its own. Sizes have
`B`; `KiB`, `MiB`, `GiB`, `TiB` (or `Ki` to `Ti`), which are powers of 1024; and `kB`, `MB`, `GB`,
`TB`, which are powers of 1000. Times have `ms`, `s`, `m`, `h`, `d` and `w`. So
`--spool-limit 4GiB`, `--log-retention 90d` and `--policy-timeout 500ms` say what they mean.

A name that no command reads is an error that says which name is meant. (Other programs have
variables that begin with `GATEWAY_`, so one that is like no setting is only warned of.)
`policyd serve`, `policyd demo` and `policyd-gateway serve` also refuse settings of other commands.
The other commands of `policyd` leave a server's settings alone, so all commands can run in one
environment.

At SIGHUP `policyd serve` and `policyd-gateway serve` read the `--config` file, secrets and
certificates again. `--help` of each names the settings that hold until its next start.
"""
_COLUMNS = ("Key in `--config`", "Flag", "Environment", "Default", "Value", "What it does")
_SERVERS = ("policyd serve", "policyd-gateway serve", "policyd demo")
_CHECKS = ("config check", "doctor")
"""Commands that take a server's settings."""
_SIZES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_MANY = 5
"""Commands that are named one by one; of more, those are that do not take the option."""


def page() -> str:
    """The page."""
    commands = dict(_commands(policyd, "policyd")) | dict(_commands(gateway, "policyd-gateway"))
    parts = [_HEAD]
    checks = {
        path.replace("serve", name): commands.pop(path.replace("serve", name))
        for path in _SERVERS[:2]
        for name in _CHECKS
    }
    for path in _SERVERS:
        command = commands.pop(path)
        parts += [f"## {path}\n", f"{_sentence(command)}\n"]
        parts.append(_table(_COLUMNS, [_cells(one) for one in _options(command)]))
        for name in _CHECKS:
            if check := checks.get(path.replace("serve", name)):
                parts.append(_of_check(path.replace("serve", name), command, check))
    parts += ["## The other commands of policyd\n", _of_others(commands)]
    return "\n".join(parts)


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")
        elif command is not None:
            yield f"{path} {name}", command


def _sentence(command: click.Command) -> str:
    return command.get_short_help_str(limit=200)


def _options(command: click.Command) -> list[click.Option]:
    return [one for one in command.params if isinstance(one, click.Option) and not one.hidden]


def _of_check(path: str, server: click.Command, check: click.Command) -> str:
    """The options that a check has beside those of its server."""
    its = {one.name for one in server.params}
    more = [one for one in _options(check) if one.name not in its]
    told = "; ".join(f"`{one.opts[0]}`: {one.help}" for one in more)
    return f"`{path}` takes the same settings: {_sentence(check)} {told}\n"


def _of_others(commands: Mapping[str, click.Command]) -> str:
    """A row for each option, however many commands take it, with these commands."""
    takers: dict[tuple[str, ...], list[str]] = {}
    for path, command in commands.items():
        for one in _options(command):
            takers.setdefault(_cells(one), []).append(path.removeprefix("policyd "))
    # What most take comes first.
    found = sorted(takers.items(), key=lambda item: len(item[1]) <= _MANY)
    names = [path.removeprefix("policyd ") for path in commands]
    rows = [(*cells[:-1], _named(paths, names), cells[-1]) for cells, paths in found]
    return _table((*_COLUMNS[:-1], "Commands", _COLUMNS[-1]), rows)


def _named(paths: Sequence[str], of: Sequence[str]) -> str:
    if len(paths) <= _MANY:
        return ", ".join(f"`{path}`" for path in paths)
    missing = ", ".join(f"`{path}`" for path in of if path not in paths)
    return f"all but {missing}" if missing else "all"


def _cells(option: click.Option) -> tuple[str, ...]:
    variable = next(iter(variables_of(option)), None)
    # --config itself cannot stand in the file that it names.
    in_file = variable is not None and option.name != "config"
    return (
        f"`{option.opts[0].removeprefix('--')}`" if in_file else "",
        " ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts) if flag[0] == "-"),
        f"`{variable}`" if variable else "",
        _default(option),
        _value(option),
        (option.help or "").replace("|", "\\|"),
    )


def _default(option: click.Option) -> str:
    default = option.to_info_dict()["default"]
    if isinstance(default, bool):
        return "`true`" if default else "`false`"
    if default is None or default == "":
        return "`false`" if option.is_flag and not option.secondary_opts else ""
    if _unit(option) == "bytes":
        for name, size in _SIZES:
            if default % size == 0:
                return f"`{default}` ({default // size} {name})"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def _unit(option: click.Option) -> str:
    return option.unit if isinstance(option, Declared) else ""


def _value(option: click.Option) -> str:
    """What it takes: a word of some, or a number of a unit and within bounds."""
    kind = option.type
    if option.is_flag:
        return "`true` or `false`"
    if isinstance(kind, click.Choice):
        return ", ".join(f"`{one}`" for one in kind.choices)
    if isinstance(kind, click.IntRange | click.FloatRange):
        bounds = [
            f"{sign} {bound:g}" if isinstance(bound, float) else f"{sign} {bound}"
            for sign, bound in ((">" if kind.min_open else "≥", kind.min), ("≤", kind.max))
            if bound is not None
        ]
        unit = _unit(option)
        size = "size in bytes" if unit == "bytes" else f"time in {unit}" if unit else ""
        what = size or ("whole number" if isinstance(kind, click.IntRange) else "number")
        return ", ".join((what, *bounds))
    shown = option.make_metavar(click.Context(click.Command("policyd")))
    return f"`{shown}`" + (", several" if option.multiple else "")


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (heading, ["---"] * len(heading), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    click.echo(page(), nl=False)
