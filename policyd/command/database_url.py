"""Whether a database's URL names a file, found without loading SQLAlchemy."""

from pathlib import Path
from urllib.parse import unquote


def sqlite_file(url: str) -> Path | None:
    """The file that a SQLite URL names; None for any other URL."""
    dialect, separator, rest = url.partition("://")
    database = rest.partition("/")[2].partition("?")[0]
    if dialect.partition("+")[0] != "sqlite" or not separator or database in ("", ":memory:"):
        return None
    return Path(unquote(database))
