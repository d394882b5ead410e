"""Options that several commands of policyd share."""

import getpass
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from policyd.cli import times
from policyd.command.configuration import Options
from policyd.command.database_url import sqlite_file
from policyd.demo import presence
from policyd.errors import StoreUnavailable
from policyd.settings import ServerSettings

if TYPE_CHECKING:
    from policyd.store import Store

_Command = TypeVar("_Command", bound=Callable[..., Any])

_MODE = (
    "did you mean --default-mode (POLICYD_DEFAULT_MODE), which holds for API keys that set no "
    "mode? A key's own modes are set by policyd keys set ID --policy NAME=MODE"
)
OPTIONS = Options(
    "POLICYD", dict.fromkeys(("enforce", "mode"), _MODE), others=("POLICYD_GATEWAY_",)
)
option = OPTIONS.option
_EPOCH = datetime.fromtimestamp(0, UTC)


class HeaderLine(click.ParamType[str]):
    """An HTTP header. In the environment, one on each line."""

    name = "'NAME: VALUE'"
    envvar_list_splitter = "\n"

    def convert(self, value: str, param: Any, ctx: Any) -> str:
        """See click.ParamType."""
        name, colon, _ = value.partition(":")
        if not colon or not name.strip():
            self.fail(f"{name!r} is not 'NAME: VALUE'", param, ctx)
        return value

    def get_metavar(self, param: Any, ctx: Any = None) -> str:
        """See click.ParamType."""
        return self.name


class Age(click.ParamType[timedelta]):
    """How long ago something was."""

    name = "AGE"

    def convert(self, value: Any, param: Any, ctx: Any) -> timedelta:
        """See click.ParamType."""
        if isinstance(value, timedelta):
            return value
        try:
            age = times.length(value)
        except (ValueError, OverflowError):
            age = None
        if age is None or age > datetime.now(UTC) - _EPOCH:
            self.fail(f"{value!r} is not an age: give one such as 30m, 24h or 90d", param, ctx)
        return age


class Moment(click.ParamType[datetime]):
    """A moment, or how long ago it was."""

    name = "TIME"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        """See click.ParamType."""
        if isinstance(value, datetime):
            return value
        try:
            ago = times.length(value)
            return times.moment(value) if ago is None else datetime.now(UTC) - ago
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is not a moment: give one such as 2026-11-25T09:30:00Z, or how long "
                "ago, such as 30m, 24h or 7d",
                param,
                ctx,
            )


def _found(context: click.Context, parameter: click.Parameter, url: str) -> str:
    """The URL of a running demo's database, where no setting names one and none is here."""
    if context.params.get("server"):
        return url  # The command works on that server.
    source = context.get_parameter_source(parameter.name or "")
    demo = presence.running() if source is ParameterSource.DEFAULT else None
    if demo is None:
        return url
    file = sqlite_file(url)
    if file is not None and file.exists():
        click.echo(
            f"This is {url}. A demo runs here, too: --database-url {demo.database_url}", err=True
        )
        return url
    click.echo(f"This is the running demo: --database-url {demo.database_url}", err=True)
    return demo.database_url


database_url = OPTIONS.setting(ServerSettings, "database_url", callback=_found)
default_mode = OPTIONS.setting(
    ServerSettings,
    "default_mode",
    help="The server's own default mode. Defaults that were applied to "
    "the database stand above it.",
)

as_json = option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")


def common(command: _Command) -> _Command:
    """The options of the commands that use the database and exit."""
    return OPTIONS.config(database_url(as_json(command)))


def actor() -> str:
    """What the audit trail calls the administrator who uses this command."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # A container's user may have no name.
        user = f"user {os.getuid()}"
    return f"cli {user}@{socket.gethostname()}"


def _check_no_other(url: str) -> None:
    """Raises StoreUnavailable where no setting names a database, and a policyd runs on this
    machine: its database is elsewhere, and it would not see what is written to a new one here."""
    usual = ServerSettings()
    if url != usual.database_url:
        return
    with suppress(OSError), socket.create_connection(usual.admin, timeout=1):
        raise StoreUnavailable(
            f"no database is here, and a policyd that runs on this machine ({usual.admin}) has "
            "one elsewhere, so none is made: name that one by --database-url, or that policyd by "
            f"--server {usual.admin} and --token-file"
        )


@contextmanager
def opened(url: str, *, create: bool = False) -> Iterator["Store"]:
    """The store at `url`, whose form this version can use. With `create`, a database that is
    missing or empty is made; none is migrated otherwise.

    Raises StoreUnavailable.
    """
    # Imported late: a command that opens no database needs no SQL.
    from policyd.store import Store

    store = Store(url)
    file = sqlite_file(url)
    is_new = file is not None and not file.exists()
    if file is not None and is_new and create:
        _check_no_other(url)
        click.echo(f"There is no database {file.absolute()} yet; it is made.", err=True)
    elif is_new:
        raise StoreUnavailable(
            f"there is no database {file}: check --database-url (a demo is found from the folder "
            "that it was started in). To make one, make the first key (policyd keys create NAME) "
            "or start policyd serve"
        )
    try:
        if create and (is_new or store.form().revision is None):
            store.migrate()
        store.check_form()
        yield store
    finally:
        store.close()


def print_json(value: object) -> None:
    """Print a value for machines, on one line."""
    click.echo(json.dumps(value, ensure_ascii=False))
