"""Which policyd this is: its version, and the commit that it was built from.

A wheel carries the commit in a file, which hatch_build.py writes as it builds. In a checkout git's
own files are read, without starting git. The standard library only: `--version` waits for it.
"""

from importlib import metadata
from pathlib import Path

CARRIED = "commit.txt"
"""The file of this package, in a wheel or a source distribution, that holds the commit."""
_PACKAGE = Path(__file__).parent
_SHORT = 12
_REFERENCE = "ref: "


def version() -> str:
    """The version, such as 0.1.0; "" where policyd is run without being installed."""
    try:
        return metadata.version("policyd")
    except metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """The commit, as 12 hexadecimal digits; "" where it is not known.

    In a checkout, it is the commit that is checked out, whatever has been changed since.
    """
    try:
        found = (_PACKAGE / CARRIED).read_text("ascii").strip()
    except (OSError, ValueError):
        found = commit_of(_PACKAGE.parent)
    return found[:_SHORT]


def commit_of(checkout: Path) -> str:
    """The commit of a git checkout, as git writes it; "" where there is none."""
    try:
        own, shared = _folders(checkout / ".git")
        head = _read(own / "HEAD")
        if not head.startswith(_REFERENCE):
            return head
        name = head.removeprefix(_REFERENCE)
        loose = shared / name
        return _read(loose) if loose.exists() else _packed(shared, name)
    except (OSError, ValueError):
        return ""


def _folders(git: Path) -> tuple[Path, Path]:
    """Where git keeps HEAD, and where branches: two folders in a second worktree."""
    if git.is_file():
        own = git.parent / _read(git).removeprefix("gitdir: ")
        return own, own / _read(own / "commondir")
    return git, git


def _packed(shared: Path, name: str) -> str:
    lines = (shared / "packed-refs").read_text("utf-8").splitlines()
    return next((line.split()[0] for line in lines if line.endswith(" " + name)), "")


def _read(file: Path) -> str:
    return file.read_text("utf-8").strip()
