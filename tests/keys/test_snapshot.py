"""The snapshot, by which a server decides that starts without its database."""

import asyncio
import multiprocessing
import os
import resource
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from policyd.engine.places import IDENTIFIERS, SAFETY_IDENTIFIER
from policyd.engine.settings import KeyChange, KeyChanges, KeySettings, ServerDefaults, Setting
from policyd.engine.states import Mode, Override
from policyd.errors import RevisionNotReached, SnapshotUnusable
from policyd.keys import api_key, snapshot_format, snapshot_keeper
from policyd.keys.settings_by_digest import SettingsByDigest
from policyd.keys.snapshot import SnapshotFile
from policyd.keys.snapshot_format import Head
from policyd.keys.snapshot_keeper import SnapshotKeeper, place_of
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.policies import TABLE
from tests.support.load import PATIENCE
from tests.support.waiting import until

IDENTITY, PLACE = "database", place_of("sqlite:///policyd.db")
HOUR = 3600.0
ENDS = (None, 1_800_000_000.25, 0.0)
DEFAULTS = ServerDefaults(TABLE.with_original(Mode.AUDIT), ("x-user",), ("envoy", "http"), 6)


def keys(count: int) -> SettingsByDigest:
    """Keys with settings of each kind."""
    kinds = [
        (((TABLE.original.name, Setting(mode, "", override)), *more), accept)
        for mode in (None, *Mode)
        for override in Override
        for more in ((), (("of_a_newer_version", Setting(Mode.ENFORCE, "é, 1", None)),))
        for accept in (IDENTIFIERS, (SAFETY_IDENTIFIER,))
    ]
    return SettingsByDigest(
        {
            secrets.token_bytes(32): KeySettings(
                api_key.generate_id(), *kinds[number % len(kinds)], ENDS[number % len(ENDS)]
            )
            for number in range(count)
        }
    )


def head(revision: int = 1, age: float = 0.0, identity: str = IDENTITY) -> Head:
    return Head(identity=identity, place=PLACE, revision=revision, followed_at=time.time() - age)


@pytest.fixture
def file(tmp_path: Path) -> SnapshotFile:
    return SnapshotFile(tmp_path / "snapshot")


def why_not(file: SnapshotFile, **given: str) -> str:
    """The reason why the snapshot cannot be used."""
    with pytest.raises(SnapshotUnusable) as problem:
        file.read(given.get("identity", IDENTITY), given.get("place", PLACE), HOUR)
    return str(problem.value)


@pytest.mark.parametrize("count", [0, 1, 24, snapshot_format.PIECE, 3 * snapshot_format.PIECE + 1])
def test_it_holds_all_settings(file: SnapshotFile, tmp_path: Path, count: int) -> None:
    """The settings of every key are read back unchanged, and only the file's owner can read it."""
    settings = keys(count)
    before = os.umask(0)
    try:
        file.keep(head(7), settings, DEFAULTS)
    finally:
        os.umask(before)
    found, read, defaults = file.read(IDENTITY, PLACE, HOUR)
    assert (read, found.revision, found.keys) == (settings, 7, count)
    assert defaults == DEFAULTS
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_holds_no_key_and_no_name(file: SnapshotFile, tmp_path: Path) -> None:
    """The snapshot holds digests in place of keys, and no names.

    A new field of a key's settings must be considered here.
    """
    key = api_key.generate()
    file.keep(head(), SettingsByDigest({api_key.digest(key): KeySettings("key_1")}))
    assert key.encode() not in (tmp_path / "snapshot").read_bytes()
    assert {one.name for one in fields(KeySettings)} == {"key_id", "policies", "accept", "until"}


@pytest.mark.slow
def test_every_damage_is_noticed(file: SnapshotFile, tmp_path: Path) -> None:
    """A snapshot with a changed byte, or one that is cut, is not used."""
    path = tmp_path / "snapshot"
    file.keep(head(), keys(5))
    whole = path.read_bytes()
    ends = len(whole[: snapshot_format.HEAD_SIZE].rstrip())
    for place in (*range(ends), *range(snapshot_format.HEAD_SIZE, len(whole))):
        damaged = bytearray(whole)
        damaged[place] ^= 0x20
        path.write_bytes(damaged)
        # Blanks around the checksum change nothing.
        with suppress(SnapshotUnusable):
            read = file.read(IDENTITY, PLACE, HOUR)
            raise AssertionError(f"byte {place} is damaged, and {read} was read")
    for size in (0, 1, ends, snapshot_format.HEAD_SIZE, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "damaged" in why_not(file)
    path.write_bytes(whole + b"x")
    assert "damaged" in why_not(file)


def test_what_is_not_used(file: SnapshotFile, tmp_path: Path) -> None:
    """A snapshot of another database or place, too old or of the future is not used."""
    assert "there is none" in why_not(file)
    file.keep(head(), keys(1))
    assert "another database" in why_not(file, identity="another")
    assert "another database" in why_not(file, place=place_of("sqlite:///other.db"))
    (tmp_path / "snapshot").unlink()  # An older snapshot does not replace a newer one.
    file.keep(head(age=HOUR + 10), SettingsByDigest())
    assert "--snapshot-max-age" in why_not(file)
    file.keep(head(age=-HOUR), SettingsByDigest())
    assert "from the future" in why_not(file)
    file.keep(head(age=HOUR / 2), SettingsByDigest())
    assert file.read(IDENTITY, PLACE, HOUR)
    (tmp_path / "snapshot").chmod(0o622)
    assert "others may write to it" in why_not(file)


def test_one_that_is_newer_stays(file: SnapshotFile) -> None:
    """A worker that no longer follows the database does not overwrite a newer snapshot."""
    file.keep(head(3), keys(3))
    for late in (head(2, age=5), head(3, age=5)):
        assert not file.is_behind(late)
        file.keep(late, keys(2))
    assert file.read(IDENTITY, PLACE, HOUR)[0].revision == 3


def test_the_form_is_no_matter_of_modules() -> None:
    """A version whose modules have other names reads it: the form changes with the fields alone.

    This one is of the first version whose digests may end; with a field more it is another.
    """
    assert snapshot_format._FORM == "4cf536d3d41c0c80"


def test_one_of_the_version_before(file: SnapshotFile, tmp_path: Path) -> None:
    """A snapshot of the version before is read: its digests have no end, and no defaults were
    applied."""
    settings = {key: replace(one, until=None) for key, one in keys(30).items()}
    different = list({(one.policies, one.accept): None for one in settings.values()})
    rows = [
        (key, one.key_id, different.index((one.policies, one.accept)))
        for key, one in settings.items()
    ]
    piece = msgspec.msgpack.encode((different, rows))
    content = len(piece).to_bytes(4) + piece
    old = msgspec.structs.replace(
        head(3),
        keys=30,
        size=len(content),
        checksum=sha256(content).hexdigest(),
        format=2,
        form="7cc5acb6cb733617",
    )
    path = tmp_path / "snapshot"
    path.write_bytes(snapshot_format.sealed(old) + content)
    path.chmod(0o600)
    found = file.read(IDENTITY, PLACE, HOUR)
    assert (found.head, dict(found.settings), found.defaults) == (old, settings, None)
    # It is written anew in this version's form, though the revision is the same.
    assert file.is_behind(head(3))


@pytest.mark.parametrize("other", [{"form": "x"}, {"format": 99}])
def test_another_version(file: SnapshotFile, other: dict[str, object]) -> None:
    """A version that knows other settings could misread the snapshot, so it does not use it, and
    writes its own.
    """
    file.keep(msgspec.structs.replace(head(), **other), SettingsByDigest())
    assert "another version" in why_not(file)
    file.keep(head(), keys(1))
    assert len(file.read(IDENTITY, PLACE, HOUR)[1]) == 1


def test_the_head_alone_is_renewed(file: SnapshotFile, tmp_path: Path) -> None:
    """Unchanged settings are not written again."""
    path = tmp_path / "snapshot"
    settings = keys(3)
    file.keep(head(age=HOUR / 2), settings)
    before = path.stat().st_ino
    assert file.is_behind(head())
    file.keep(head(), SettingsByDigest())
    assert not file.is_behind(head())
    assert path.stat().st_ino == before
    read = file.read(IDENTITY, PLACE, HOUR / 4).settings
    assert read == settings
    for other in (head(2), head(identity="another")):
        assert file.is_behind(other)
        file.keep(other, SettingsByDigest())
        assert file.read(other.identity, PLACE, HOUR)[1] == {}


def _writes(path: Path, number: int) -> None:
    settings = SettingsByDigest(
        {
            bytes(32): KeySettings(f"key_{number}"),
            bytes([1]) * 32: KeySettings(f"key_{number}"),
        }
    )
    for revision in range(number, 10**6, 8):
        with suppress(OSError):
            SnapshotFile(path).keep(head(revision), settings)


@pytest.mark.slow
def test_several_that_write_and_are_killed(tmp_path: Path) -> None:
    """Whenever a writer is killed, and however many write, the file is one whole snapshot."""
    path = tmp_path / "snapshot"
    file = SnapshotFile(path)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_writes, args=(path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    give_up = time.monotonic() + PATIENCE
    while file.head() is None and time.monotonic() < give_up:
        time.sleep(0.01)
    for writer in writers:
        for _ in range(50):
            read = file.read(IDENTITY, PLACE, HOUR).settings
            assert len({one.key_id for one in read.values()}) == 1
        writer.kill()
        writer.join()
    assert len(file.read(IDENTITY, PLACE, HOUR)[1]) == 2
    file.keep(head(10**7), keys(5))
    assert {one.name for one in tmp_path.iterdir()} == {"snapshot", "snapshot.lock"}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_room_for_a_new_one(file: SnapshotFile, tmp_path: Path) -> None:
    """Without room the existing snapshot stays, and no temporary file is left."""
    settings = keys(3)
    file.keep(head(), settings)
    with files_of_at_most(4096), pytest.raises(OSError):  # noqa: PT011  # Any of them will do.
        file.keep(head(2), keys(1000))
    assert file.read(IDENTITY, PLACE, HOUR)[1] == settings
    assert {one.name for one in tmp_path.iterdir()} == {"snapshot", "snapshot.lock"}


class Changing:
    """A store of one key, whose settings change at every read while `is_busy`."""

    def __init__(self) -> None:
        self.revision = 1
        self.epoch = "a"
        self.is_busy = False

    def changes_since(self, revision: int, epoch: str) -> KeyChanges:
        self.revision += self.is_busy
        change = KeyChange(bytes(32), KeySettings(f"key_{self.epoch}{self.revision}"))
        everything = not revision or epoch != self.epoch
        return KeyChanges(self.revision, (change,), everything, self.epoch)


@pytest.mark.slow
async def test_it_is_kept_as_settings_change(
    file: SnapshotFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change is soon in the snapshot, which is rewritten now and then while changes go on."""
    store = Changing()
    table = StoredKeyTable(store.changes_since)
    keeper = asyncio.create_task(SnapshotKeeper(file, table, lambda: IDENTITY, PLACE).keep())
    await asyncio.sleep(2 * snapshot_keeper._TURN)
    assert file.head() is None, "what the store has not told is no snapshot"
    following = asyncio.create_task(table.follow(0.01))
    await until(lambda: _revision(file) == 1)
    store.is_busy = True
    seen, end = [], time.monotonic() + 6 * snapshot_keeper._TURN
    while time.monotonic() < end:
        seen.append((tmp_path / "snapshot").stat().st_ino)
        await asyncio.sleep(0.005)
    assert 2 <= sum(one != other for one, other in pairwise(seen)) <= 8
    store.is_busy = False
    await until(lambda: _revision(file) == store.revision)
    assert file.read(IDENTITY, PLACE, HOUR)[1] == table.copy()
    # A database that was put back from a backup may have other settings at the same revision.
    store.epoch = "b"
    await until(lambda: _epoch(file) == "b")
    assert file.read(IDENTITY, PLACE, HOUR)[1] == {bytes(32): KeySettings(f"key_b{store.revision}")}
    for task in (keeper, following):
        task.cancel()


def _revision(file: SnapshotFile) -> int:
    found = file.head()
    return found.revision if found else 0


def _epoch(file: SnapshotFile) -> str:
    found = file.head()
    return found.epoch if found else ""


async def test_a_table_that_begins_by_a_snapshot() -> None:
    """A table that begins by a snapshot is as old as that, and then reads the whole store,
    including what was deleted there.
    """
    store = Changing()
    table = StoredKeyTable(store.changes_since)
    assert not table.is_known
    gone = b"g" * 32
    table.restore({gone: KeySettings("key_gone")}, 5, 100.0)
    assert (table.is_known, table.is_followed, table.revision) == (True, False, 5)
    assert 100 <= table.staleness() < 100 + PATIENCE
    with pytest.raises(RevisionNotReached):
        await table.wait_for(6, 0.01)
    await table.refresh()
    assert table.is_followed
    assert table.settings(gone) is None
    assert table.settings(bytes(32)) is not None
    assert (table.revision, table.staleness() < PATIENCE) == (1, True)
