"""The spool's folder: made for one database, and refused to another as long as it is in use."""

import errno
import os
import stat
from contextlib import closing
from pathlib import Path

import pytest

from policyd.decision_log import spool
from policyd.decision_log.spool import SpoolReader, SpoolWriter
from policyd.decision_log.spool.folder import unusable
from policyd.errors import NoRoom, SettingsError
from tests.support.open_files import open_files


def test_the_database_of_a_folder(tmp_path: Path) -> None:
    """A folder is that of one database, from the first start on, and of another once it is empty
    and out of use.
    """
    folder = tmp_path / "spool"
    spool.make(folder)
    assert spool.known_database(folder) is None
    (folder / "database").touch()
    assert spool.known_database(folder) is None, "the disk was full"
    spool.prepare(folder, "one")
    assert spool.known_database(folder) == "one"
    before = open_files()
    spool.prepare(folder, "other")
    assert spool.known_database(folder) == "other"
    assert open_files() == before
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert files == {"database": 0o600, "shipper.lock": 0o600}


def test_a_start_that_needs_no_room(tmp_path: Path) -> None:
    """A start with the same database writes nothing, even while policyd runs."""
    spool.prepare(tmp_path, "one")
    before = (tmp_path / "database").stat().st_ino
    with closing(SpoolReader(tmp_path)) as reader:
        assert reader.lock()
        spool.prepare(tmp_path, "one")
    assert (tmp_path / "database").stat().st_ino == before, "the file was replaced"


def test_entries_of_another_database(tmp_path: Path) -> None:
    """A folder with entries stays that of their database, and the error names both ways out.

    An empty segment is no entry.
    """
    spool.prepare(tmp_path, "one")
    writer = SpoolWriter(tmp_path, "worker", 2**20)
    spool.prepare(tmp_path, "other")
    writer.write(b"a\n")
    writer.close()
    with pytest.raises(SettingsError) as refused:
        spool.prepare(tmp_path, "one")
    assert str(refused.value) == (
        f"--spool {tmp_path} holds entries of another database, which that one does not have yet: "
        "run policyd with that database, or give --spool another folder"
    )
    assert spool.known_database(tmp_path) == "other"


def test_a_folder_in_use(tmp_path: Path) -> None:
    """A folder from which policyd ships now is refused to another database, with the fix."""
    spool.prepare(tmp_path, "one")
    with closing(SpoolReader(tmp_path)) as reader:
        assert reader.lock()
        before = open_files()
        with pytest.raises(SettingsError, match=r"in use by .*: give --spool another folder\Z"):
            spool.prepare(tmp_path, "other")
        assert open_files() == before
    assert spool.known_database(tmp_path) == "one"


def test_a_gateways_folder(tmp_path: Path) -> None:
    """A gateway marks its folder, for its owner alone, and finds it again, also once it knows the
    database of its policyd."""
    folder = tmp_path / "spool"
    before, umask = open_files(), os.umask(0)
    try:
        spool.claim(folder)
        spool.claim(folder)
    finally:
        os.umask(umask)
    assert open_files() == before
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [file.name for file in folder.iterdir()] == ["gateway"]
    assert stat.S_IMODE((folder / "gateway").stat().st_mode) == 0o600
    spool.prepare(folder, "database")
    spool.claim(folder)


def test_whose_folder_it_is(tmp_path: Path) -> None:
    """The folder of a policyd is refused to a gateway, and a gateway's to a policyd. Neither
    owns a new folder."""
    spool.check_own(tmp_path)
    spool.check_gateways(tmp_path)
    spool.prepare(tmp_path / "policyd", "database")
    spool.check_own(tmp_path / "policyd")
    spool.claim(tmp_path / "gateway")
    spool.check_gateways(tmp_path / "gateway")
    for refuses in (spool.claim, spool.check_gateways):
        with pytest.raises(SettingsError) as refused:
            refuses(tmp_path / "policyd")
        assert str(refused.value) == (
            f"--spool {tmp_path}/policyd is the spool of a policyd: give the gateway a folder of "
            "its own"
        )
    with pytest.raises(SettingsError) as refused:
        spool.check_own(tmp_path / "gateway")
    assert str(refused.value) == (
        f"--spool {tmp_path}/gateway is the spool of a gateway that decides by itself: give "
        "policyd a folder of its own"
    )


def test_a_folder_that_cannot_be_marked(tmp_path: Path) -> None:
    """A gateway that cannot mark its folder does not use it, and the error gives the cause."""
    (tmp_path / "gateway").mkdir()
    with pytest.raises(SettingsError, match=f"--spool {tmp_path} cannot be used: Is a directory"):
        spool.claim(tmp_path)


def test_what_is_no_folder(tmp_path: Path) -> None:
    """A path that is no folder cannot be used, and the error names it and the fix."""
    file = tmp_path / "file"
    file.touch()
    for begin in (spool.make, SpoolReader, lambda path: spool.prepare(path, "one")):
        with pytest.raises(SettingsError, match=f"--spool {file} cannot be used: .* Give it a "):
            begin(file)


@pytest.mark.parametrize("name", ["database", f"database.{os.getpid()}.tmp"], ids=["mark", "draft"])
def test_a_mark_that_is_no_file(tmp_path: Path, name: str) -> None:
    """A folder whose mark can be neither read nor written is not used, and the error says why."""
    (tmp_path / name).mkdir()
    with pytest.raises(SettingsError, match=f"--spool {tmp_path} cannot be used: Is a directory"):
        spool.prepare(tmp_path, "one")


@pytest.mark.parametrize(
    ("number", "kind", "fix"),
    [
        (errno.ENOSPC, NoRoom, "Make room on its disk"),
        (errno.EDQUOT, NoRoom, "Make room on its disk"),
        (errno.EACCES, SettingsError, "that policyd may write to, on a local disk"),
        (errno.EROFS, SettingsError, "that policyd may write to, on a local disk"),
    ],
)
def test_why_a_folder_is_unusable(number: int, kind: type, fix: str, tmp_path: Path) -> None:
    """A full disk is an error of its own kind; each names the folder, the cause and the fix."""
    error = unusable(tmp_path, OSError(number, os.strerror(number)))
    assert type(error) is kind
    assert str(tmp_path) in str(error)
    assert os.strerror(number) in str(error)
    assert str(error).endswith(fix)
