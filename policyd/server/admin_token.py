"""The administration token of a server: made at its first start, or once there is room for it."""

import asyncio
import secrets
from contextlib import suppress
from pathlib import Path

from policyd.errors import NoRoom
from policyd.keys import tokens
from policyd.services.authentication import TokenInterceptor

_PAUSE = 1.0
"""Seconds between two looks at whether a full disk has room for the token."""


def guard_of(path: Path) -> tuple[TokenInterceptor, bool]:
    """The guard of AdminService, and whether it accepts the token in `path` already.

    Where the disk is full, it lets no administrator in before accept_later(). Raises SettingsError.
    """
    guard = TokenInterceptor(
        secrets.token_hex(32), f"it stands in {path.name}, which policyd serve names"
    )
    try:
        guard.accept(tokens.load_or_create(path))
    except NoRoom:
        return guard, False
    return guard, True


async def accept_later(guard: TokenInterceptor, path: Path) -> None:
    """Let administrators in once there is room for their token."""
    while True:
        await asyncio.sleep(_PAUSE)
        with suppress(NoRoom):
            return guard.accept(tokens.load_or_create(path))
