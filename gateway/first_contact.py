"""A gateway starts without policyd, and says so: its requests get 503 until policyd answers."""

import asyncio
import logging

from gateway.diagnosis import ask
from gateway.settings import Settings
from policyd.errors import PolicydError

_log = logging.getLogger("gateway")

_PAUSE = 5.0
"""Seconds between two tries."""


async def tell_of_policyd(settings: Settings) -> None:
    """Warn while policyd does not answer the gateway, with the cause and the fix, once for each
    cause. Returns once it has answered."""
    told = ""
    while True:
        try:
            await ask(settings)
        except PolicydError as problem:
            if str(problem) != told:
                told = str(problem)
                _log.warning("the gateway is ready, and policyd does not decide yet: %s", told)
        else:
            if told:
                _log.info("policyd answers now")
            return
        await asyncio.sleep(_PAUSE)
