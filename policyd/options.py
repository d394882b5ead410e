"""Options that commands share, and how each also reads the environment and the --config file."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from policyd.settings import read_config
from policyd.store import Store, sqlite_file

_Command = TypeVar("_Command", bound=Callable[..., Any])
_LEVELS = ("debug", "info", "warning", "error")

KNOWN: set[str] = {"config"}
"""The names of all settings, which --config and the environment may have."""


def option(flag: str, **attributes: Any) -> Callable[[_Command], _Command]:
    """A click option that also reads POLICYD_* and --config."""
    name = flag.removeprefix("--").replace("-", "_")
    KNOWN.add(name)
    show_default = attributes.get("default") is not None and not attributes.get("is_flag")
    return click.option(
        flag,
        envvar=f"POLICYD_{name.upper()}",
        show_envvar=True,
        show_default=show_default,
        **attributes,
    )


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None:
        context.default_map = {**(context.default_map or {}), **read_config(path, KNOWN)}


config = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="POLICYD_CONFIG",
    show_envvar=True,
    is_eager=True,  # Before the options that it sets.
    expose_value=False,
    callback=_read_config,
    help="YAML file with settings, named as the options are.",
)
database_url = option(
    "--database-url",
    default="sqlite:///policyd.db",
    metavar="URL",
    help="sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME.",
)
log_level = option(
    "--log-level", default="info", type=click.Choice(_LEVELS), help="How much is logged."
)


def common(command: _Command) -> _Command:
    """The options of the commands that use the database and exit."""
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
    return config(database_url(as_json(command)))


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


def start_logging(level: str) -> None:
    """Log to stderr."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # The demo says itself that it runs.
    logging.getLogger("alembic").setLevel(logging.WARNING)  # It tells of every start.
