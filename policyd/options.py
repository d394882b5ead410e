"""Options that several commands of policyd share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from policyd.configuration import Options
from policyd.store import Store, sqlite_file

_Command = TypeVar("_Command", bound=Callable[..., Any])

OPTIONS = Options("POLICYD")
option = OPTIONS.option
database_url = option(
    "--database-url",
    default="sqlite:///policyd.db",
    metavar="URL",
    help="sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME.",
)


def common(command: _Command) -> _Command:
    """The options of the commands that use the database and exit."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
    return OPTIONS.config(database_url(as_json(command)))


@contextmanager
def opened(url: str) -> Iterator[Store]:
    """The store at `url`, brought to this version's form."""
    store = Store(url)
    try:
        store.migrate()
        yield store
    finally:
        store.close()


def beside_database(url: str, name: str) -> Path:
    """A file called `name` in the database's folder, or here if it is no file."""
    file = sqlite_file(url)
    return (file.parent if file else Path()) / name
