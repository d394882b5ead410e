"""Bounds of labels: a client that sends ever new names must not make ever new series.

Prometheus holds each combination of labels in memory, and so does each process here. So a label
holds no secret, no user and no path; of the names that clients or upstreams choose, only the first
few become labels, and all others are OTHER.
"""

import re

from policyd.telemetry.redaction import redacted

OTHER = "other"
MODELS = 200
"""Models that are told apart."""
CHILDREN = 2000
"""Combinations of labels of one metric in one process."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,63}")
_STATUS = range(100, 600)


class Names:
    """The names that are told apart: the first `most` of them that look like names."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def bounded(self, name: str) -> str:
        """`name`, or OTHER: for a name beyond the bound, or one that does not look like a name."""
        if name in self._known:
            return name
        if len(self._known) >= self._most or not _NAME.fullmatch(name):
            return OTHER
        if redacted(name) != name:  # A client has put its key into this field.
            return OTHER
        self._known.add(name)
        return name


def status(number: int) -> str:
    """The label of an HTTP status; 0 stands for no answer."""
    if number in _STATUS:
        return str(number)
    return OTHER if number else "none"
