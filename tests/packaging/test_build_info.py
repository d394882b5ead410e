"""The commit of a checkout, as it is read from git's own files."""

import subprocess
from pathlib import Path

import pytest

from policyd.build_info import commit, commit_of, version
from tests.support.requirements import beyond_pip

ONE = "1111111111111111111111111111111111111111"
TWO = "2222222222222222222222222222222222222222"
ROOT = Path(__file__).parents[2]


def write(folder: Path, **files: str) -> Path:
    """`folder`, with these files; a name's two underscores are a slash."""
    for name, text in files.items():
        file = folder / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return folder


BRANCH = "ref: refs/heads/main"
CHECKOUTS: list[tuple[str, dict[str, str]]] = [
    ("a branch", {".git__HEAD": BRANCH, ".git__refs__heads__main": ONE}),
    ("no branch", {".git__HEAD": ONE}),
    (
        "a packed branch",
        {
            ".git__HEAD": BRANCH,
            ".git__packed-refs": f"# pack-refs\n{TWO} refs/heads/other\n{ONE} refs/heads/main",
        },
    ),
    (
        "a newer branch beside the packed one",
        {
            ".git__HEAD": BRANCH,
            ".git__packed-refs": f"{TWO} refs/heads/main",
            ".git__refs__heads__main": ONE,
        },
    ),
    (
        "a second worktree",
        {
            ".git": "gitdir: main/.git/worktrees/second",
            "main__.git__worktrees__second__HEAD": "ref: refs/heads/second",
            "main__.git__worktrees__second__commondir": "../..",
            "main__.git__refs__heads__second": ONE,
        },
    ),
]


@pytest.mark.parametrize("files", [files for _, files in CHECKOUTS], ids=[n for n, _ in CHECKOUTS])
def test_a_checkout(files: dict[str, str], tmp_path: Path) -> None:
    assert commit_of(write(tmp_path, **files)) == ONE


@pytest.mark.parametrize("files", [{}, {".git__HEAD": BRANCH}, {".git": "gitdir: gone"}])
def test_no_checkout(files: dict[str, str], tmp_path: Path) -> None:
    """Where git's files are not there, or do not fit together, no commit is known."""
    assert commit_of(write(tmp_path, **files)) == ""


@pytest.mark.programs
def test_git_says_the_same() -> None:
    beyond_pip("git")
    command = ("git", "rev-parse", "HEAD")
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.startswith(commit())
    assert commit()
    assert version()
