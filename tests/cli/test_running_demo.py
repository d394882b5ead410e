"""Commands find a demo that runs in their folder, and believe nothing else."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from policyd.demo.presence import Demo, claimed, running
from policyd.errors import SettingsError
from tests.support.commands import invoke
from tests.support.databases import put_database


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a folder for a demo's data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.fixture
def found(folder: Path) -> Iterator[str]:
    """The database of a demo that runs on ./data."""
    url = put_database(f"sqlite:///{folder / 'data' / 'policyd.db'}")
    with claimed(Path("data")) as presence:
        presence.tell(Demo(url, "127.0.0.1:1", "data/admin-token"))
        yield url


@pytest.mark.parametrize("words", [("keys", "list"), ("logs", "list"), ("db", "status")])
def test_it_is_found(found: str, words: tuple[str, ...]) -> None:
    """A command without a database setting uses the running demo's database, and says so."""
    done = invoke("policyd", *words)
    assert done.returncode == 0
    assert f"This is the running demo: --database-url {found}" in done.stderr.decode()


@pytest.mark.parametrize("way", ["flag", "environment", "file"])
def test_what_is_given_wins(found: str, folder: Path, way: str) -> None:
    """A database that the operator names is used, however it is named."""
    url = put_database(f"sqlite:///{folder / 'mine.db'}")
    words = {"flag": ("--database-url", url), "file": ("--config", "policyd.yaml")}.get(way, ())
    (folder / "policyd.yaml").write_text(f"database-url: {url}\n")
    env = {"POLICYD_DATABASE_URL": url} if way == "environment" else {}
    done = invoke("policyd", "keys", "create", "one", *words, env=env)
    assert done.returncode == 0
    assert "demo" not in done.stderr.decode()
    assert b"one" not in invoke("policyd", "keys", "list", "--database-url", found).stdout


def test_a_database_of_the_folder_wins(found: str, folder: Path) -> None:
    """Where the default database is there, it stays the default, and the demo is pointed out."""
    put_database(f"sqlite:///{folder / 'policyd.db'}")
    done = invoke("policyd", "keys", "create", "one")
    assert done.returncode == 0
    assert f"A demo runs here, too: --database-url {found}" in done.stderr.decode()
    assert b"one" not in invoke("policyd", "keys", "list", "--database-url", found).stdout


def test_a_demo_that_has_ended(folder: Path) -> None:
    """The file of a demo that has ended, or was killed, means nothing."""
    with claimed(Path("data")) as presence:
        presence.tell(Demo("sqlite:///data/policyd.db", "", ""))
        assert running()
    assert (folder / "data" / "demo.json").exists()
    assert not running()


@pytest.mark.parametrize("wrong", ["group", "link", "folder", "half", "list", "number", "empty"])
def test_files_that_are_not_believed(folder: Path, wrong: str) -> None:
    """A file that others can write to, that stands elsewhere or that makes no sense is no demo."""
    path = folder / "data" / "demo.json"
    with claimed(Path("data")) as presence:
        presence.tell(Demo("sqlite:///data/policyd.db", "", ""))
        text = {
            "half": path.read_text()[:30],
            "list": "[1]",
            "number": json.dumps({**json.loads(path.read_text()), "admin": 1}),
            "empty": "",
        }.get(wrong)
        if text is not None:
            path.write_text(text)
        elif wrong == "group":
            path.chmod(0o660)
        else:
            path.rename(folder / "elsewhere.json")
            path.mkdir() if wrong == "folder" else path.symlink_to(folder / "elsewhere.json")
        assert not running()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_file(folder: Path) -> None:
    """The file of another user is not believed: it would name that user's database."""
    with claimed(Path("data")) as presence:
        presence.tell(Demo("sqlite:///data/policyd.db", "", ""))
        os.chown(folder / "data" / "demo.json", 12345, -1)
        assert not running()


def test_a_second_demo(folder: Path) -> None:
    """Two demos on one folder's data are refused, with what to do."""
    with (
        claimed(Path("data")),
        pytest.raises(SettingsError, match="DATA= of make run"),
        claimed(Path("data")),
    ):
        pass
    with claimed(Path("data")):
        pass
