"""policyd's access log: one line for each decision, made from its entry in the decision log."""

from collections.abc import Sequence
from time import perf_counter

from policyd.decision_log.record import Record, Verdict
from policyd.decision_log.refused_key import RefusedKey
from policyd.decision_log.writer import Entry
from policyd.telemetry.access import AccessLine, AccessLog, plain

_VERDICTS = {one: one.name.lower() for one in Verdict}
_ALLOWED, _REFUSED = 200, 403
"""The status of a line whose request may go upstream, and of one whose key is not in force."""


class DecisionAccess:
    """Writes a line for each decision about a key in force, and counts the others."""

    def __init__(self, access: AccessLog) -> None:
        self._access = access

    def decided(self, adapter: str, entries: Sequence[Entry], began: float) -> None:
        """Write the lines of one request by `adapter`, which came at `began` by perf_counter()."""
        seconds = round(perf_counter() - began, 6)
        for entry in entries:
            if isinstance(entry, RefusedKey):
                self._access.count_stranger(_REFUSED)
            elif isinstance(entry, Record):
                self._access.write(
                    AccessLine(
                        plain(entry.method),
                        plain(entry.path),
                        entry.status or _ALLOWED,
                        adapter=adapter,
                        operation=entry.operation,
                        verdict=_VERDICTS[entry.verdict],
                        flags=entry.flags,
                        decision_id=entry.id,
                        trace_id=entry.trace_id,
                        api_key_id=entry.key_id,
                        seconds=seconds,
                    )
                )

    def end(self) -> None:
        """Report the refused keys that no line has reported yet."""
        self._access.flush()
