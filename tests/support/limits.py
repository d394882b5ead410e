"""The bounds of a listener, out of a test's reach."""

from typing import Any

from policyd.asgi.limits import Limits
from policyd.command.serving_settings import ANSWER_MEMORY

NEVER = 1000.0
"""Seconds that no test waits."""


def wide_limits(**limits: Any) -> Limits:
    """These limits, and all others out of a test's reach."""
    wide: dict[str, Any] = dict.fromkeys(("head", "body", "idle", "write"), NEVER)
    return Limits(**{"connections": 100, "unread": ANSWER_MEMORY} | wide | limits)
