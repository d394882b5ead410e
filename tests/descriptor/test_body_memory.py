"""Which bodies are read in a thread, and which at once."""

import threading

import pytest

from policyd.descriptor.body_memory import AT_ONCE, Bodies

MIB = 2**20


@pytest.mark.parametrize(
    ("size", "decoded", "in_thread"),
    [
        (AT_ONCE, 0, False),
        (AT_ONCE + 1, 0, True),
        (1000, AT_ONCE, False),
        (1000, AT_ONCE + 1, True),
        (0, 0, False),
    ],
)
async def test_one_threshold(size: int, decoded: int, in_thread: bool) -> None:
    """A body that is large, if only decompressed, is read in a thread, and counted meanwhile."""
    bodies = Bodies(4 * MIB)
    here = threading.current_thread()

    def work() -> tuple[bool, int]:
        return threading.current_thread() is not here, bodies.held

    with bodies.hold() as held:
        was_in_thread, counted = await bodies.do(held, size, decoded, work)
    assert was_in_thread == in_thread
    assert (counted >= decoded) or not in_thread
    assert bodies.held == 0
    bodies.close()
