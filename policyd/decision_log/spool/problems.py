"""Errors for entries that cannot be written to the spool: each names the cause and the fix."""

import errno

from policyd.command.private_files import NO_ROOM
from policyd.errors import LogFull, LogUnwritable

NO_FILES = frozenset({errno.EMFILE, errno.ENFILE})


def unwritable(what: str, error: OSError | None) -> LogFull:
    """LogFull where there is no room, LogUnwritable for every other cause."""
    if error is not None and error.errno in NO_ROOM:
        return LogFull(f"the decision log cannot {what}: {cause(error)}")
    return LogUnwritable(f"the decision log cannot {what}: {cause(error)}")


def cause(error: OSError | None) -> str:
    """The cause, and the fix."""
    if error is None:
        return _at_the_disk("", "--log-error drop")
    if error.errno in NO_FILES:
        return (
            f"{error.strerror}. Raise the limit of open files (ulimit -n; LimitNOFILE= of a "
            "systemd unit), or lower --max-connections"
        )
    is_full = error.errno in NO_ROOM
    return _at_the_disk(
        f" ({error.strerror})", "--log-full drop" if is_full else "--log-error drop"
    )


def _at_the_disk(why: str, flag: str) -> str:
    return f"see to the folder and the disk that --spool names{why}, or serve with {flag}"
