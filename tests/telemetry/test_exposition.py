"""One page for the processes of a server: those that run, and those that have ended."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.parser import text_string_to_metric_families

from policyd.telemetry import catalogue
from policyd.telemetry.exposition import Exposition
from policyd.telemetry.folder import metrics_folder
from policyd.telemetry.reading import Reading

COUNTER = catalogue.SHIPPED.name
GAUGE = catalogue.CONNECTIONS.name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the processes' files are."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    """A child of this process that runs until it is killed."""
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield running
    running.kill()
    running.communicate()


def write(folder: Path, process: int, kind: str, name: str, value: float) -> None:
    """What a process has counted."""
    file = MmapedDict(str(folder / f"{kind}_{process}.db"))
    key = mmap_key(name, name, [], [], "help")
    file.write_value(key, value, 0.0)
    file.close()


def values(exposition: Exposition) -> dict[str, float]:
    page = exposition.page().decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def nothing() -> Reading:
    return ()


def test_all_processes_together(folder: Path, child: "subprocess.Popen[bytes]") -> None:
    """Counts and gauges of processes that run are added up."""
    for process in (os.getpid(), child.pid):
        write(folder, process, "counter", COUNTER, 2)
        write(folder, process, "gauge_livesum", GAUGE, 3)
    assert values(Exposition(folder, nothing)) == {COUNTER: 4, GAUGE: 6}


def test_a_process_that_was_killed(folder: Path, child: "subprocess.Popen[bytes]") -> None:
    """A killed process leaves its counts and takes its gauges with it; its files are merged."""
    exposition = Exposition(folder, nothing)
    write(folder, os.getpid(), "counter", COUNTER, 1)
    write(folder, child.pid, "counter", COUNTER, 2)
    write(folder, child.pid, "gauge_livesum", GAUGE, 3)
    assert values(exposition) == {COUNTER: 3, GAUGE: 3}
    child.kill()
    # Also before its parent has taken note of its end.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert values(exposition) == {COUNTER: 3}
    assert values(exposition) == {COUNTER: 3}
    assert {one.name for one in folder.iterdir()} == {
        f"counter_{os.getpid()}.db",
        "counter_ended.db",
    }


def test_many_processes_leave_one_file(folder: Path) -> None:
    """However many have ended, the folder does not grow, and no count is lost."""
    exposition = Exposition(folder, nothing)
    for number in range(1, 51):
        # No system gives such numbers to a process of ours.
        write(folder, 2**22 + number, "counter", COUNTER, 1)
        write(folder, 2**22 + number, "histogram", "time_seconds_sum", 0.5)
        exposition.tend()
    assert {one.name for one in folder.iterdir()} == {"counter_ended.db", "histogram_ended.db"}
    assert values(exposition)[COUNTER] == 50


def test_what_is_read_at_each_scrape(folder: Path) -> None:
    """The supervisor's own gauges are those of the moment."""
    numbers = iter((1.0, 2.0))

    def read() -> Reading:
        yield catalogue.WORKERS, (), next(numbers)
        yield catalogue.BUILD, ("1", "c"), 1

    exposition = Exposition(folder, read)
    assert values(exposition)["policyd_workers"] == 1
    assert values(exposition) == {"policyd_workers": 2, "policyd_build_info": 1}


def test_the_folder() -> None:
    """Only its owner can read the folder, the environment names it to children, and it is
    removed."""
    with metrics_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert os.environ["PROMETHEUS_MULTIPROC_DIR"] == str(folder)
        (folder / "counter_1.db").write_bytes(b"")
    assert not folder.exists()
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ


def test_the_folder_of_a_server_that_was_killed() -> None:
    """The next server removes it, and none that is in use."""
    code = (
        "import os\n"
        "from policyd.telemetry.folder import metrics_folder\n"
        "with metrics_folder() as folder:\n"
        "    print(folder, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False
    )
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    with metrics_folder() as used, metrics_folder() as other:
        assert not left.exists()
        assert used.is_dir()
        assert other.is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_the_folder_of_another_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder that another user made there is left alone, and holds up no start."""
    from policyd.telemetry import folder

    monkeypatch.setattr(folder, "_IN_MEMORY", tmp_path)
    other = tmp_path / "policyd-metrics-other"
    other.mkdir()
    os.mkfifo(other / "lock")
    os.chown(other, 12345, -1)
    with metrics_folder():
        assert other.is_dir()


@pytest.mark.parametrize("what", ["pipe", "device", "link"])
def test_folders_that_others_have_made(what: str, tmp_path: Path) -> None:
    """The server neither waits for what stands where folders are made, nor reads it without end,
    nor follows it."""
    theirs, precious = tmp_path / "policyd-metrics-theirs", tmp_path / "precious"
    precious.mkdir()
    (precious / "lock").write_text("locked")
    if what == "link":
        theirs.symlink_to(precious)
    else:
        theirs.mkdir()
    if what == "pipe":
        os.mkfifo(theirs / "lock")
    elif what == "device":
        (theirs / "lock").symlink_to("/dev/zero")
    code = (
        "from pathlib import Path\n"
        "from policyd.telemetry.folder import _remove_left\n"
        f"_remove_left(Path({str(tmp_path)!r}))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert theirs.exists()
    assert (precious / "lock").read_text() == "locked"


def test_no_place_for_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no room for files, the error says what to do."""
    from policyd.errors import SettingsError
    from policyd.telemetry import folder

    monkeypatch.setattr(folder, "_IN_MEMORY", tmp_path / "none")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "neither"))
    with pytest.raises(SettingsError, match="TMPDIR"), metrics_folder():
        pass
