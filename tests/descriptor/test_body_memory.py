"""How many bytes of bodies are held at once, and which bodies are read in a thread."""

import asyncio
import threading

import pytest

from policyd.descriptor.body_memory import AT_ONCE, SMALL, Bodies
from policyd.errors import BodiesFull

MIB = 2**20
LARGE = AT_ONCE + 1


@pytest.mark.parametrize(
    ("size", "decoded", "counted"),
    [
        (AT_ONCE, 0, None),
        (LARGE, 0, LARGE),
        (1000, AT_ONCE, None),
        (1000, LARGE, LARGE),
        (LARGE, LARGE, 2 * LARGE),
        (0, 0, None),
    ],
)
async def test_one_threshold(size: int, decoded: int, counted: int | None) -> None:
    """A body that is large, if only decompressed, is read in a thread, and counted meanwhile.

    The thread is none of those that wait for the database.
    """
    bodies = Bodies(4 * MIB)

    def work() -> tuple[str, int]:
        return threading.current_thread().name, bodies.held

    with bodies.hold() as held:
        thread, found = await bodies.do(held, size, decoded, work)
    assert thread.startswith("bodies") == (counted is not None)
    assert found == (counted or 0)
    assert bodies.held == 0
    bodies.close()


@pytest.mark.parametrize(("size", "counted"), [(SMALL, 0), (SMALL + 1, SMALL + 1)])
def test_small_bodies_are_free(size: int, counted: int) -> None:
    """A small body counts for nothing, as sent or decompressed; a larger one counts in full."""
    bodies = Bodies(MIB)
    with bodies.hold() as held:
        held.grow(size)
        assert bodies.held == counted
        held.grow(0, size)
        assert bodies.held == counted
        held.grow(size, size)
        assert bodies.held == 2 * counted
    assert bodies.held == 0


def test_the_memory() -> None:
    """All bodies together take the memory to the byte. One more byte is refused, and not counted;
    a body that shrinks is not.
    """
    bodies = Bodies(4 * LARGE)
    with bodies.hold() as one, bodies.hold() as other:
        one.grow(3 * LARGE)
        other.grow(LARGE)
        for size, decoded in ((LARGE + 1, 0), (LARGE, SMALL + 1)):
            with pytest.raises(BodiesFull, match="raise --body-memory"):
                other.grow(size, decoded)
        assert bodies.held == 4 * LARGE
        other.grow(LARGE)
        one.grow(LARGE)
        other.grow(2 * LARGE)
    assert bodies.held == 0


async def test_an_end_while_a_body_is_read() -> None:
    """The end of the process does not wait for a body that is being read."""
    bodies = Bodies(4 * MIB)
    begun, goes_on = threading.Event(), threading.Event()

    def work() -> bool:
        begun.set()
        return goes_on.wait()

    with bodies.hold() as held:
        reading = asyncio.create_task(bodies.do(held, LARGE, 0, work))
        await asyncio.to_thread(begun.wait)
        bodies.close()
        goes_on.set()
        assert await reading
