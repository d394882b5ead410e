"""GET /healthz, /readyz, /settingsz and /decisionsz, with which load balancers, orchestrators and
alerts probe a server. They need no key, and are not logged.

/healthz answers as long as the process does: an orchestrator should restart one that does not.
/readyz tells whether requests should be sent to the server, as of a second ago at most: however
many probes come, one check runs at a time. Two more are policyd's only. /settingsz tells whether it
decides by fresh settings: where it does not, neither a restart nor another replica helps.
/decisionsz tells whether requests get a decision, also while the server drains: a gateway that asks
over HTTP looks there.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

_log = logging.getLogger(__name__)

HEALTHZ = "/healthz"
READYZ = "/readyz"
SETTINGSZ = "/settingsz"
DECISIONSZ = "/decisionsz"
PATIENCE = 1.0
"""Seconds that a probe waits for a check."""
_KEEP = 1.0
"""Seconds for which the result of a check answers further probes."""
_HEADERS = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))
_SLOW = "the check takes too long"
_FAULT = "the check failed: see the log"

Check = Callable[[], Awaitable[str]]
"""Gives the reason why no requests should come, without any secret in it; "" where they may."""


class Answer(NamedTuple):
    """The answer to a probe."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def _answer(status: int, **told: str | list[str]) -> Answer:
    return Answer(status, _HEADERS, json.dumps(told, separators=(",", ":")).encode())


_ALIVE = _answer(200, state="alive")
_READY = _answer(200, state="ready")
_FRESH = _answer(200, state="fresh")
_DECIDES = _answer(200, state="deciding")
_WRONG_METHOD = Answer(405, (*_HEADERS, ("Allow", "GET, HEAD")), b'{"reason":"send a GET request"}')


def _no_remark() -> str:
    return ""


def _no_warnings() -> list[str]:
    return []


class Probes:
    """Answers probes. Belongs to one event loop.

    `check` tells whether the server is ready, and `remark` and `warnings` what an operator should
    know of it while it is. `is_stale`, which has to be quick, gives the reason why the settings are
    stale, and `is_undecided` the reason why requests get no decision; a server that does not decide
    has neither.
    """

    def __init__(
        self,
        check: Check,
        remark: Callable[[], str] = _no_remark,
        is_stale: Check | None = None,
        warnings: Callable[[], list[str]] = _no_warnings,
        is_undecided: Check | None = None,
    ) -> None:
        self._check = check
        self._remark = remark
        self._own = {
            path: (check, well, ill)
            for path, check, well, ill in (
                (SETTINGSZ, is_stale, _FRESH, "stale"),
                (DECISIONSZ, is_undecided, _DECIDES, "not deciding"),
            )
            if check is not None
        }
        """What only policyd has: the check, its answer where all is well, its state otherwise."""
        self._warnings = warnings
        self._checking: asyncio.Task[str] | None = None
        self._problem = ""
        self._ending = ""
        self._checked_at = float("-inf")

    def end(self, reason: str) -> None:
        """Answer from now on that the server is not ready, whatever the check says."""
        self._ending = reason

    async def answer(self, method: str, path: str) -> Answer | None:
        """The answer to a probe, None to every other request. It takes about PATIENCE at most."""
        if path not in (HEALTHZ, READYZ) and path not in self._own:
            return None
        if method not in ("GET", "HEAD"):
            return _WRONG_METHOD
        if path == HEALTHZ:
            return _ALIVE
        if path in self._own:
            check, well, ill = self._own[path]
            reason = await check()
            return _answer(503, state=ill, reason=reason) if reason else well
        problem = self._ending or await self._current()
        if problem:
            return _answer(503, state="not ready", reason=problem)
        remark, warnings = self._remark(), self._warnings()
        told: dict[str, str | list[str]] = {"remark": remark} if remark else {}
        told |= {"warnings": warnings} if warnings else {}
        return _answer(200, state="ready", **told) if told else _READY

    async def _current(self) -> str:
        if self._checking is None and time.monotonic() - self._checked_at < _KEEP:
            return self._problem
        if self._checking is None:
            self._checking = asyncio.create_task(self._run())
        # Later probes wait for a check that hangs, too: no second one runs beside it.
        done, _ = await asyncio.wait({self._checking}, timeout=PATIENCE)
        return self._problem if done else _SLOW

    async def _run(self) -> str:
        try:
            self._problem = await self._check()
        except Exception:  # noqa: BLE001  # Without a result the server counts as not ready.
            _log.exception("a fault of policyd; it cannot tell whether it is ready")
            self._problem = _FAULT
        finally:  # However it ended, a later probe checks again.
            self._checked_at = time.monotonic()
            self._checking = None
        return self._problem
