"""Settings that are declared once: how flags, the environment, files and workers read them."""

import json
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from gateway import settings as gateway_settings
from gateway.serve import serve as gateway_serve
from policyd import settings as policyd_settings
from policyd.cli.serve import serve
from policyd.command.address import Address
from policyd.command.configuration import Options
from policyd.command.settings import build, dump, load, setting, settings_of
from policyd.engine.states import Mode
from policyd.errors import SettingsError


class Colour(IntEnum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One setting of each kind."""

    place: Address = setting(Address("127.0.0.1", 1), "Where.")
    other: Address | None = setting(None, "Where else.")
    count: int = setting(1, "How many.", least=1, most=9)
    pause: float | None = setting(None, "Seconds.", unit="seconds", above=0)
    colour: Colour = setting(Colour.RED, "Which.", words={"red": Colour.RED, "blue": Colour.BLUE})
    drops: bool = setting(False, "What if.", name="on_full", words={"deny": False, "drop": True})
    is_on: bool = setting(True, "Whether.", name="on", switch=True)
    is_bold: bool = setting(False, "Whether.", name="bold")
    names: tuple[str, ...] = setting((), "Which ones.")
    folder: Path | None = setting(None, "Where to.", path="folder")
    token: str = setting("", "The same as a value.", file_help="Holds a token.", hidden=True)
    seed: int = 0


CHANGED = Sample(
    place=Address("::1", 2),
    other=Address("localhost", 3),
    count=2,
    pause=0.5,
    colour=Colour.BLUE,
    drops=True,
    is_on=False,
    is_bold=True,
    names=("a", "b"),
    folder=Path("x"),
    token="secret",
)
FLAGS = [
    *("--place", "[::1]:2", "--other", "localhost:3", "--count", "2", "--pause", "0.5"),
    *("--colour", "blue", "--on-full", "drop", "--no-on", "--bold", "--names", "a, b"),
    *("--folder", "x", "--token", "secret"),
]
VARIABLES = {
    "SAMPLE_PLACE": "[::1]:2",
    "SAMPLE_OTHER": "localhost:3",
    "SAMPLE_COUNT": "2",
    "SAMPLE_PAUSE": "0.5",
    "SAMPLE_COLOUR": "blue",
    "SAMPLE_ON_FULL": "drop",
    "SAMPLE_ON": "false",
    "SAMPLE_BOLD": "true",
    "SAMPLE_NAMES": "a,b",
    "SAMPLE_FOLDER": "x",
    "SAMPLE_TOKEN": "secret",
}


def ask(*flags: str, env: dict[str, str] | None = None) -> Sample:
    """The settings that a command with these flags runs by."""
    options = Options("SAMPLE")
    made: list[Sample] = []

    @click.command()
    @options.config
    @options.settings(Sample)
    def command(**given: Any) -> None:
        made.append(build(Sample, given))

    result = CliRunner().invoke(command, list(flags), env=env, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return made[0]


def test_defaults() -> None:
    """A setting that the operator does not give has the default of its class."""
    assert ask() == Sample()


def test_flags() -> None:
    """A flag's text becomes a value of the field's type."""
    assert ask(*FLAGS) == CHANGED


def test_the_environment() -> None:
    """A variable takes what its flag takes."""
    assert ask(env=VARIABLES) == CHANGED


def test_a_file(tmp_path: Path) -> None:
    """A line of the --config file takes what its flag takes."""
    lines = [
        f"{name.removeprefix('SAMPLE_').lower().replace('_', '-')}: '{value}'"
        for name, value in VARIABLES.items()
    ]
    config = tmp_path / "sample.yaml"
    config.write_text("\n".join(lines))
    assert ask("--config", str(config)) == CHANGED


def test_a_secret_in_a_file(tmp_path: Path) -> None:
    """A secret is read from its file without the line's end.

    The value itself wins, and neither shows in repr().
    """
    (tmp_path / "token").write_text("hush\n")
    file = ("--token-file", str(tmp_path / "token"))
    assert ask(*file).token == "hush"
    assert ask(*file, "--token", "other").token == "other"
    assert "hush" not in repr(ask(*file))
    with pytest.raises(SettingsError, match="cannot be read"):
        ask("--token-file", str(tmp_path / "none"))
    (tmp_path / "token").write_text("\n")
    with pytest.raises(SettingsError, match="is empty"):
        ask(*file)


def test_an_address() -> None:
    """An error about a malformed address names its flag.

    An empty address means none where it is optional.
    """
    assert ask("--other", "").other is None
    for flag in ("--place", "--other"):
        with pytest.raises(SettingsError, match=f"{flag} takes HOST:PORT"):
            ask(flag, "nowhere")
    with pytest.raises(SettingsError, match="--place takes HOST:PORT"):
        ask("--place", "")


@pytest.mark.parametrize("given", [Sample(), CHANGED, replace(CHANGED, seed=7)])
def test_a_worker_has_the_same(given: Sample) -> None:
    """JSON carries every value to a worker, including those that only code sets."""
    assert load(Sample, json.loads(json.dumps(dump(given))), "policyd") == given


def test_a_worker_of_another_version() -> None:
    """A worker of another version reports a setting that it does not know."""
    for program in ("policyd", "the gateway"):
        with pytest.raises(SettingsError, match=f"stop {program} and start it again"):
            load(Sample, dump(CHANGED) | {"more": 1}, program)


LOG = {"--log-level", "--log-format"}
SERVERS = [
    (policyd_settings.ServerSettings, serve, {"poll_interval"}),
    (gateway_settings.Settings, gateway_serve, set()),
]


@pytest.mark.parametrize(("kind", "command", "internal"), SERVERS)
def test_every_field_is_a_setting(kind: Any, command: click.Command, internal: set[str]) -> None:
    """A server's command takes exactly what its class declares, each with a description."""
    declared = settings_of(kind)
    assert {one.name for one in fields(kind)} - {one.field for one in declared} == internal
    assert all(one.help or one.file_help for one in declared)
    taken = {flag for option in command.params for flag in option.opts} - {"--config"}
    flags = {one.flag for one in declared if one.help}
    assert taken == flags | {one.file_flag for one in declared if one.file_help} | LOG


@pytest.mark.parametrize(("kind", "command", "internal"), SERVERS)
def test_no_default_stands_twice(kind: Any, command: click.Command, internal: set[str]) -> None:
    """A command without flags runs with the class's own defaults."""
    context = command.make_context("serve", [])
    for name in ("log_level", "log_format"):
        context.params.pop(name)
    assert build(kind, context.params) == kind()


def test_what_depends_on_the_database() -> None:
    """The spool and the administration token stand beside the database, unless they are set."""
    made = policyd_settings.ServerSettings(database_url="sqlite:///data/policyd.db")
    assert made.spool == Path("data/policyd.db-spool")
    assert made.admin_token_file == Path("data/admin-token")
    elsewhere = policyd_settings.ServerSettings(database_url="postgresql+psycopg://h/n")
    assert (elsewhere.spool, elsewhere.admin_token_file) == (
        Path("policyd-spool"),
        Path("admin-token"),
    )
    assert replace(elsewhere, spool=Path("x")).spool == Path("x")


def test_the_servers_settings_pass() -> None:
    """The settings of both servers reach their workers unchanged."""
    made = policyd_settings.ServerSettings(
        http=Address("127.0.0.1", 0),
        default_mode=Mode.ENFORCE,
        console_trusted_proxies=("10.0.0.7", "192.168.0.0/16"),
        end_user_headers=("x-user", "x-email"),
        end_user_callers=("grpc", "envoy"),
        drop_when_full=True,
        spool_sync="always",
        snapshot=Path("snapshot"),
    )
    told = json.loads(json.dumps(policyd_settings.dump_settings(made)))
    assert policyd_settings.load_settings(told) == made
    forwarding = gateway_settings.Settings(
        listen=Address("::1", 0),
        api_key="up-1",
        policyd_tls=True,
        policyd_ca=Path("ca.pem"),
        end_user_headers=("x-user",),
        end_user_networks=("10.0.0.0/8",),
    )
    told = json.loads(json.dumps(gateway_settings.dump_settings(forwarding)))
    assert gateway_settings.load_settings(told) == forwarding
