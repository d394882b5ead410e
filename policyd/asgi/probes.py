"""GET /healthz, /readyz and /settingsz, by which balancers, orchestrators and alerts probe a
server: they need no key, and leave no trace in the log.

/healthz says that the process answers: one that does not is to be restarted. /readyz says whether
requests should be sent to it, as far as that was known a moment ago: however many probes come, one
check runs at a time. /settingsz, which policyd's HTTP check alone has, says whether it decides by
fresh settings: where it does not, a restart does not help, nor do other replicas.
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
PATIENCE = 1.0
"""Seconds that a probe waits for a check."""
_KEEP = 1.0
"""Seconds that the outcome of a check is good for."""
_HEADERS = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))
_SLOW = "the check takes too long"
_FAULT = "the check failed: see the log"

Check = Callable[[], Awaitable[str]]
"""Says why no requests should come, in words that hold no secret; "" where they may."""


class Answer(NamedTuple):
    """What a probe is answered."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def _answer(status: int, **told: str) -> Answer:
    return Answer(status, _HEADERS, json.dumps(told, separators=(",", ":")).encode())


_ALIVE = _answer(200, state="alive")
_READY = _answer(200, state="ready")
_FRESH = _answer(200, state="fresh")
_WRONG_METHOD = Answer(405, (*_HEADERS, ("Allow", "GET, HEAD")), b'{"reason":"send a GET request"}')


def _no_remark() -> str:
    return ""


class Probes:
    """Answers probes; `check` says whether it is ready, `remark` what an operator should know of
    one that is, and `is_stale`, which is quick, whether the settings are stale, where there are
    some. Belongs to one event loop."""

    def __init__(
        self,
        check: Check,
        remark: Callable[[], str] = _no_remark,
        is_stale: Check | None = None,
    ) -> None:
        self._check = check
        self._remark = remark
        self._is_stale = is_stale
        self._checking: asyncio.Task[str] | None = None
        self._problem = ""
        self._ending = ""
        self._checked_at = float("-inf")

    def end(self, reason: str) -> None:
        """It is not ready from now on, whatever a check would say."""
        self._ending = reason

    async def answer(self, method: str, path: str) -> Answer | None:
        """The answer to a probe, None to every other request. It takes about PATIENCE at most."""
        if path not in (HEALTHZ, READYZ) and not (path == SETTINGSZ and self._is_stale):
            return None
        if method not in ("GET", "HEAD"):
            return _WRONG_METHOD
        if path == HEALTHZ:
            return _ALIVE
        if path == SETTINGSZ and self._is_stale:
            stale = await self._is_stale()
            return _answer(503, state="stale", reason=stale) if stale else _FRESH
        problem = self._ending or await self._current()
        if problem:
            return _answer(503, state="not ready", reason=problem)
        remark = self._remark()
        return _answer(200, state="ready", remark=remark) if remark else _READY

    async def _current(self) -> str:
        if self._checking is None and time.monotonic() - self._checked_at < _KEEP:
            return self._problem
        if self._checking is None:
            self._checking = asyncio.create_task(self._run())
        # One that hangs is waited for by later probes too: no second one runs beside it.
        done, _ = await asyncio.wait({self._checking}, timeout=PATIENCE)
        return self._problem if done else _SLOW

    async def _run(self) -> str:
        try:
            self._problem = await self._check()
        except Exception:  # noqa: BLE001  # Whatever it was, it is not ready.
            _log.exception("a fault of policyd; it cannot tell whether it is ready")
            self._problem = _FAULT
        finally:  # Whatever ends it, a later probe checks anew.
            self._checked_at = time.monotonic()
            self._checking = None
        return self._problem
