"""What a server needs on its own disk before it starts; and the background worker's process.

A full disk keeps no server from starting: what is missing is made once there is room.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from policyd.command.child import Child
from policyd.command.database_url import sqlite_file
from policyd.command.private_files import make_file, warn_of_open_folders
from policyd.command.threads import StoreThreads
from policyd.decision_log import spool
from policyd.errors import NoRoom, PolicydError, SettingsError
from policyd.keys import tokens
from policyd.settings import SHIPPING, ServerSettings, dump_settings

_log = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds between two looks at whether a full disk has room."""


def prepare(settings: ServerSettings, *, is_first: bool = True) -> bool:
    """Make the administration token and the spool's folder; with `is_first` also an empty database,
    if it is a file and there is none. Returns whether there was room. Raises SettingsError.

    Only the first process of a start makes the database, so that none appears later in the place of
    one that was deleted.
    """
    file = sqlite_file(settings.database_url)
    if file is not None and not file.parent.is_dir() and not settings.snapshot_file.exists():
        raise SettingsError(
            f"--database-url names {file}, and there is no folder {file.parent}: make it, or name "
            "another file"
        )
    has_room = True
    try:
        make_the_rest(settings, is_first=is_first)
    except NoRoom as error:
        _log.error("policyd starts without what it has no room for: %s", error)
        has_room = False
    kept = (
        settings.spool,
        settings.admin_token_file.parent,
        *([Path(os.path.realpath(file)).parent] if file else []),
    )
    warn_of_open_folders(kept)
    return has_room


async def preparing(settings: ServerSettings, *, is_first: bool = True) -> bool:
    """prepare() in a thread that keeps no process from ending."""
    return await StoreThreads("the start", None).run(prepare, settings, is_first=is_first)


def background_worker(settings: ServerSettings) -> Child:
    """The background worker's process: see background.py."""
    return Child(
        "the background worker", "policyd.server.background", dump_settings(settings), SHIPPING
    )


async def keep_background_worker(worker: Child, settings: ServerSettings, is_started: bool) -> None:
    """Keep the worker running, until cancelled. Unless `is_started`, start it first, once the disk
    has room."""
    if not is_started:
        await start_with_room(worker.start, settings)
    await worker.keep_running()


async def start_with_room(start: Callable[[], Awaitable[None]], settings: ServerSettings) -> None:
    """Start the background worker once the disk has room for what it needs."""
    while True:
        await asyncio.sleep(_PAUSE)
        try:
            make_the_rest(settings)
            return await start()
        except NoRoom:
            continue
        except (PolicydError, OSError) as error:
            _log.error("the background worker does not start: %s", error)


def make_the_rest(settings: ServerSettings, *, is_first: bool = True) -> None:
    """Make what prepare() could not. Raises SettingsError; NoRoom while the disk is full."""
    spool.check_own(settings.spool)
    spool.make(settings.spool)
    tokens.load_or_create(settings.admin_token_file)
    file = sqlite_file(settings.database_url)
    if file is not None and is_first:
        # Without room even for an empty file, the database counts as away, and the log says so.
        with suppress(OSError):
            make_file(Path(os.path.realpath(file)))
