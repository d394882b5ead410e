"""Only its owner may read a file that policyd makes, whatever the umask."""

import asyncio
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from policyd.command.private_files import make_folder
from policyd.errors import SettingsError
from policyd.server.server import Server
from policyd.store import Store
from tests.support.consoles import prepare, settings
from tests.support.load import PATIENCE
from tests.support.processes import BIN, Program, run
from tests.support.waiting import until

pytestmark = pytest.mark.slow  # These tests start commands and servers under each umask.

OPEN = ("/bin/sh", "-c", 'umask 0; exec "$0" "$@"')
"""Runs a command as one that lets every user read what it makes."""


@pytest.fixture
def umask() -> Iterator[None]:
    """No umask at all, as some services have it."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """The modes of everything in a folder, by path within it."""
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        found[name] = stat.S_IMODE(path.lstat().st_mode)
    return found


def check(folder: Path, *expected: str) -> None:
    """Check that `expected` are among a folder's files, and that all are private."""
    found = modes(folder)
    for name in expected:
        assert any(Path(one).match(name) for one in found), (name, found)
    for name, mode in found.items():
        assert mode == (0o700 if (folder / name).is_dir() else 0o600), (name, oct(mode))


def command(*arguments: str) -> tuple[str, ...]:
    """One of our commands, in a process without a umask."""
    return (*OPEN, str(BIN / arguments[0]), *arguments[1:])


def test_the_command_that_comes_first(tmp_path: Path) -> None:
    """`policyd keys create` makes a private database; a log that it writes is private as well."""
    url = f"sqlite:///{tmp_path}/policyd.db"
    made = run(*command("policyd", "keys", "create", "app", "--database-url", url))
    assert made.returncode == 0, made.stderr
    assert b"open to others" not in made.stderr
    to_file = ("--output", str(tmp_path / "log.csv"))
    done = run(*command("policyd", "logs", "export", *to_file, "--database-url", url))
    assert done.returncode == 0, done.stderr
    check(tmp_path, "policyd.db", "log.csv")


async def test_all_of_a_demo(tmp_path: Path, start: Callable[..., Any]) -> None:
    """The database, its WAL, the token, the spool and the folders that policyd, its workers and the
    gateway make are private.
    """
    places = [word for name in ("gateway", "grpc", "console") for word in (f"--{name}", "[::1]:0")]
    data = tmp_path / "there" / "data"
    demo = start(
        Program,
        *command("policyd", "demo", "--data", str(data), *places),
        ready=r"(http://\S+); point any OpenAI client",
    )
    key = await _demo_key(demo)
    async with aiohttp.ClientSession() as http:
        headers = {"x-usagepanda-api-key": key}
        async with http.post(
            f"{demo.match[1]}/v1/chat/completions", json={"model": "m"}, headers=headers
        ) as answer:
            assert answer.status == 422
    await until((data / "policyd.db-spool" / "shipper.lock").exists)
    check(
        tmp_path,
        *("there", "there/data", "policyd.db", "policyd.db-wal", "policyd.db-shm"),
        *("admin-token", "policyd.db-spool", "database", "*.jsonl", "*.lost", "shipper.lock"),
    )


async def _demo_key(demo: Program) -> str:
    marker = "API key, which is shown this once: "
    await until(lambda: any(marker in line for line in demo.output))
    return next(line for line in demo.output if marker in line).removeprefix(marker).strip()


@pytest.mark.usefixtures("umask")
async def test_as_a_library(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As a library, policyd makes each file private without the command's umask."""
    async with asyncio.timeout(PATIENCE):
        chosen = settings(tmp_path / "data", spool=tmp_path / "apart" / "spool")
        make_folder(tmp_path / "data")
        async with Server(chosen):
            await until((chosen.spool / "shipper.lock").exists)
            check(
                tmp_path,
                *("policyd.db", "policyd.db-wal", "policyd.db-shm", "admin-token"),
                *("database", "*.jsonl", "*.lost", "shipper.lock"),
            )
    # No file was readable first and made private afterwards.
    assert "open to others" not in caplog.text


@pytest.mark.usefixtures("umask")
def test_a_journal(tmp_path: Path) -> None:
    """SQLite's journal is private where it writes one, as on a disk that can have no WAL."""
    store = Store(f"sqlite:///{tmp_path}/policyd.db")
    store.migrate()
    store.close()
    connection = sqlite3.connect(tmp_path / "policyd.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE revision SET value = value + 1")
    check(tmp_path, "policyd.db-journal")
    connection.close()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o666])
def test_files_that_were_open(tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int) -> None:
    """Files of an earlier version are made private, and the log mentions it once."""
    url = f"sqlite:///{tmp_path}/policyd.db"
    held = Store(url)
    held.migrate()
    held.keys.create("app")
    for name in ("policyd.db", "policyd.db-wal", "policyd.db-shm"):
        (tmp_path / name).chmod(mode)
    Store(url).close()
    check(tmp_path, "policyd.db", "policyd.db-wal", "policyd.db-shm")
    assert caplog.text.count("was open to others") == 3
    assert f"({mode:04o})" in caplog.text
    caplog.clear()
    other = Store(url)
    assert len(other.keys.list()) == 1
    other.close()
    held.close()
    assert "open to others" not in caplog.text


@pytest.mark.parametrize(("mode", "word"), [(0o755, "list"), (0o777, "write to"), (0o750, "")])
def test_a_folder_that_was_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, word: str
) -> None:
    """An existing folder keeps its mode, and the log names it if every user may look into it."""
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(mode)
    prepare(settings(tmp_path))
    assert modes(tmp_path)["spool"] == mode
    told = [line for line in caplog.messages if "every user of this machine" in line]
    assert len(told) == bool(word)
    assert all(f"{word} {tmp_path}/spool ({mode:04o})" in line for line in told)


def test_a_database_by_a_link(tmp_path: Path) -> None:
    """The file that a link leads to is made private, whether it is new or was there."""
    (tmp_path / "policyd.db").symlink_to(tmp_path / "elsewhere.db")
    url = f"sqlite:///{tmp_path}/policyd.db"
    for name in ("app", "other"):
        made = run(*command("policyd", "keys", "create", name, "--database-url", url))
        assert made.returncode == 0, made.stderr
        assert modes(tmp_path)["elsewhere.db"] == 0o600
        (tmp_path / "elsewhere.db").chmod(0o644)
        Store(url).close()
        assert modes(tmp_path)["elsewhere.db"] == 0o600


@pytest.mark.parametrize("name", ["", "folder", "folder/", "file/policyd.db", "loop"])
def test_what_is_no_database(tmp_path: Path, name: str) -> None:
    """A file that is no database is named in an error, and stays as it is."""
    (tmp_path / "folder").mkdir(mode=0o755)
    (tmp_path / "file").touch(mode=0o644)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = modes(tmp_path)
    made = run("policyd", "keys", "create", "app", "--database-url", f"sqlite:///{tmp_path}/{name}")
    assert made.returncode == 1
    assert b"unable to open database file" in made.stderr
    assert b"Traceback" not in made.stderr
    assert modes(tmp_path) == before


def test_folders_that_are_none(tmp_path: Path) -> None:
    """An error about a path that is no folder names the setting."""
    (tmp_path / "file").touch()
    for spool in (tmp_path / "file", tmp_path / "file" / "spool"):
        with pytest.raises(SettingsError, match=r"--spool .* cannot be used"):
            prepare(settings(tmp_path, spool=spool))
    with pytest.raises(SettingsError, match=r"--admin-token-file .* cannot be made"):
        prepare(settings(tmp_path, admin_token_file=tmp_path / "file" / "token"))
