"""Options that several commands of policyd share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from policyd.configuration import Options
from policyd.errors import StoreUnavailable
from policyd.store import Store, sqlite_file

_Command = TypeVar("_Command", bound=Callable[..., Any])

OPTIONS = Options("POLICYD")
option = OPTIONS.option


class HeaderLine(click.ParamType[str]):
    """An HTTP header. The environment has one a line."""

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


database_url = option(
    "--database-url",
    default="sqlite:///policyd.db",
    metavar="URL",
    help="sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME.",
)


def common(command: _Command) -> _Command:
    """The options of the commands that use the database and exit."""
    as_json = option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
    return OPTIONS.config(database_url(as_json(command)))


@contextmanager
def opened(url: str, *, create: bool = False) -> Iterator[Store]:
    """The store at `url`, brought to this version's form.

    Raises StoreUnavailable where there is none and it is not to be made.
    """
    store = Store(url)
    file = sqlite_file(url)
    is_new = file is not None and not file.exists()
    if is_new and create:
        click.echo(f"There is no database {file} yet; it is made.", err=True)
    elif is_new:
        raise StoreUnavailable(
            f"there is no database {file}: check --database-url, or make the first key "
            "(policyd keys create NAME) or start policyd serve, which make it"
        )
    try:
        store.migrate()
        yield store
    finally:
        store.close()


def spool(url: str) -> Path:
    """The folder where the entries of this database's log wait for it."""
    file = sqlite_file(url)
    return beside_database(url, f"{file.name}-spool" if file else "policyd-spool")


def beside_database(url: str, name: str) -> Path:
    """A file called `name` in the database's folder, or here if it is no file."""
    file = sqlite_file(url)
    return (file.parent if file else Path()) / name
