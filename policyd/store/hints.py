"""Hints that settings have changed. They may be lost, so whoever follows them polls as well."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import sqlalchemy as sa

_log = logging.getLogger(__name__)
_CHANNEL = "policyd_settings"
_PAUSE = 5.0
"""Seconds until a lost connection is made again."""


def give(connection: sa.Connection) -> None:
    """Tell whoever listens that settings change with this transaction."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"NOTIFY {_CHANNEL}")


async def follow(engine: sa.Engine) -> AsyncIterator[None]:
    """Yields at every hint, for ever; at once ends on SQLite, which gives none."""
    if engine.dialect.name != "postgresql":
        return
    # An extra of its own, which SQLite does without.
    import psycopg

    arguments, options = engine.dialect.create_connect_args(engine.url)
    while True:
        try:
            connection: psycopg.AsyncConnection[Any] = await psycopg.AsyncConnection.connect(
                *arguments, **options, autocommit=True
            )
            async with connection, contextlib.aclosing(connection.notifies()) as hints:
                await connection.execute(f"LISTEN {_CHANNEL}")
                async for _ in hints:
                    yield
        except psycopg.Error as error:
            _log.debug("no hints of changed settings for now: %s", type(error).__name__)
        await asyncio.sleep(_PAUSE)
