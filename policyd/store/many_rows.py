"""Statements for many rows of numbers and texts, which go to the driver as they are.

SQLAlchemy would take longer for each row than the database does, so rows bypass it. Nothing is
converted: callers give what the driver takes, 0 or 1 for no or yes, and no NUL in a text.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from policyd.store.database import MOST

Names = tuple[str, ...]
Rows = list[tuple[Any, ...]]


def insert(connection: sa.Connection, table: sa.Table, names: Names, rows: Rows) -> None:
    """Insert new rows, of the columns with these names."""
    if not rows:
        return
    if _is_postgresql(connection):
        # One statement for all of them: see _Cursor in postgresql.py.
        statement = f"COPY {table.name} ({', '.join(names)}) FROM STDIN"
    else:
        marks = ", ".join("?" * len(names))
        statement = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608  # our own names
    connection.exec_driver_sql(statement, rows)


def add(connection: sa.Connection, table: sa.Table, counts: Names, rows: Rows) -> None:
    """Insert rows, each a primary key of its own followed by `counts`; where there is a row with
    that key, add to its counts. Sums grow up to 2**62."""
    if not rows:
        return
    if _is_postgresql(connection):
        # One statement with an array for each column: many statements in a pipeline cost more.
        columns = zip(*rows, strict=True)
        statement = _addition(table, counts, "postgresql")
        connection.exec_driver_sql(statement, tuple(map(_array, columns)))
    else:
        connection.exec_driver_sql(_addition(table, counts, "sqlite"), rows)


def change(connection: sa.Connection, table: sa.Table, names: Names, rows: Rows) -> None:
    """Set the columns with these names. In each row, their values are followed by its key."""
    if not rows:
        return
    mark = "%s" if _is_postgresql(connection) else "?"
    changes = ", ".join(f"{name} = {mark}" for name in names)
    (key,) = table.primary_key.columns.keys()
    statement = f"UPDATE {table.name} SET {changes} WHERE {key} = {mark}"  # noqa: S608  # our own names
    connection.exec_driver_sql(statement, rows)


def _is_postgresql(connection: sa.Connection) -> bool:
    return connection.dialect.name == "postgresql"


@lru_cache
def _addition(table: sa.Table, counts: Names, dialect: str) -> str:
    columns = [*table.primary_key.columns, *(table.columns[name] for name in counts)]
    if dialect == "postgresql":
        arrays = ", ".join(f"%s::{column.type.compile()}[]" for column in columns)
        what = f"SELECT * FROM unnest({arrays})"  # noqa: S608  # our own names
    else:
        what = f"VALUES ({', '.join('?' * len(columns))})"
    # A number that does not fit would fail the transaction at every try.
    sums = ", ".join(
        f"{name} = CASE WHEN {table.name}.{name} > {MOST} - excluded.{name} THEN {MOST} "
        f"ELSE {table.name}.{name} + excluded.{name} END"
        for name in counts
    )
    key = ", ".join(table.primary_key.columns.keys())
    names = ", ".join(column.name for column in columns)
    into = f"INSERT INTO {table.name} ({names})"
    return f"{into} {what} ON CONFLICT ({key}) DO UPDATE SET {sums}"


def _array(values: Sequence[Any]) -> str:
    """The values as PostgreSQL writes an array: numbers, or texts."""
    if not isinstance(values[0], str):
        return "{" + ",".join(map(str, values)) + "}"
    return "{" + ",".join(map(_quoted, values)) + "}"


def _quoted(text: str) -> str:
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
