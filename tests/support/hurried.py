"""An event loop in which nothing waits, for tests of what is done every so often."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple

_Given = TypeVarTuple("_Given")


class HurriedLoop(asyncio.SelectorEventLoop):
    """It calls at once what is to be called later, and tells after how many seconds that was."""

    def __init__(self) -> None:
        super().__init__()
        self.later: list[tuple[float, Callable[..., object]]] = []

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Given], object],
        *args: *_Given,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.later.append((delay, callback))
        return super().call_later(0, callback, *args, context=context)
