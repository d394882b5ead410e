"""How many bytes of bodies are held at once, and where bodies are read."""

import asyncio
import ctypes
import gc
import gzip
import json
import os
import random
import signal
import subprocess
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from policyd.descriptor import body_readers
from policyd.descriptor.body import read_body
from policyd.descriptor.body_memory import AT_ONCE, SMALL, Bodies
from policyd.descriptor.body_readers import READERS, BodyReaders
from policyd.descriptor.content_encoding import decoded_limit
from policyd.descriptor.pieces import Pieces
from policyd.descriptor.reader_process import BodyContext, read_answer
from policyd.engine import endpoints
from policyd.errors import BodiesFull
from tests.support.hurried import HurriedLoop
from tests.support.resident import leave_holes, resident
from tests.support.waiting import wait_until

MIB = 2**20
MUCH = 8 * MIB
LARGE = AT_ONCE + 1
LIMIT = 4 * MIB
CHAT = endpoints.ENDPOINTS["/chat/completions"]
EDITS = endpoints.ENDPOINTS["/images/edits"]
PLAIN = BodyContext("application/json", "", CHAT, LIMIT)
CODED = PLAIN._replace(content_encoding="gzip")


def chat(size: int, user: str = "alice") -> bytes:
    """A chat completion of so many bytes."""
    begin, end = f'{{"user":{json.dumps(user)},"messages":["'.encode(), b'"]}'
    return begin + b"a" * (size - len(begin) - len(end)) + end


PACKED = gzip.compress(
    json.dumps({"user": "alice", "x": random.Random(9).randbytes(LARGE).hex()}).encode()
)


@pytest.fixture
async def bodies() -> AsyncIterator[Bodies]:
    """All bodies of a process."""
    made = Bodies(16 * MIB)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("body", "about", "counted"),
    [
        (chat(AT_ONCE), PLAIN, 0),
        (chat(LARGE), PLAIN, LARGE),
        (gzip.compress(chat(1000)), CODED, 0),
        (PACKED, CODED, len(PACKED) + decoded_limit(len(PACKED), LIMIT)),
    ],
    ids=["small", "large", "small when decompressed", "compressed"],
)
async def test_one_threshold(bodies: Bodies, body: bytes, about: BodyContext, counted: int) -> None:
    """A body that is large, if only decompressed, is read in another process, and that one's copy
    is counted meanwhile; any other is read at once."""
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, bodies.held)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    with bodies.hold() as held:
        attributes = await bodies.read(held, 0, Pieces(body), about)
    watching.cancel()
    assert attributes == read_body(body, *about)
    assert attributes.user.value == "alice"
    assert len(bodies.readers) == (1 if counted else 0)
    assert most == counted
    assert bodies.held == 0


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
            with pytest.raises(BodiesFull) as error:
                other.grow(size, decoded)
            assert str(error.value) == (
                "policyd holds as many request bodies as it may. Try again; if it lasts, raise "
                "--body-memory"
            )
        assert bodies.held == 4 * LARGE
        other.grow(LARGE)
        one.grow(LARGE)
        other.grow(2 * LARGE)
    assert bodies.held == 0


def timers(bodies: Bodies, sizes: Sequence[int]) -> list[tuple[float, Callable[..., object]]]:
    """What is to be called later, and when, after a body had these sizes."""

    async def hold() -> None:
        held = bodies.hold()
        for size in sizes:
            held.grow(size)

    loop = HurriedLoop()
    try:
        loop.run_until_complete(hold())
    finally:
        loop.close()
    return loop.later


@pytest.mark.parametrize(
    ("sizes", "times"),
    [
        ([MUCH, 0], 1),
        ([LARGE, MUCH, LARGE, 0], 1),
        ([MUCH - 1, 0], 0),
        ([MUCH, LARGE], 0),
        ([MUCH, SMALL + 1], 0),
        ([MUCH, 0, LARGE, 0], 1),
        ([MUCH, 0, MUCH, 0], 2),
    ],
)
def test_when_memory_is_given_back(sizes: Sequence[int], times: int) -> None:
    """A second after no body is held any more, where 8 MiB were held since the last time."""
    assert [delay for delay, _ in timers(Bodies(16 * MIB), sizes)] == [1.0] * times


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="it is glibc's")
def test_memory_is_given_back() -> None:
    """The system gets what is not in use, unless other bodies are held by then."""
    bodies = Bodies(16 * MIB)
    ((_, settle),) = timers(bodies, [MUCH, 0])
    kept = leave_holes()
    before = resident()
    with bodies.hold() as held:
        held.grow(LARGE)
        settle()
        assert before - resident() < MIB
    settle()
    assert before - resident() > MUCH
    del kept


async def test_no_room_for_the_copy() -> None:
    """A body for whose copy there is no room is not read, and a smaller one still is."""
    bodies = Bodies(2 * LARGE - 1)
    body = chat(LARGE)
    with bodies.hold() as held:
        held.grow(len(body))
        with pytest.raises(BodiesFull, match="raise --body-memory"):
            await bodies.read(held, len(body), Pieces(body), PLAIN)
        assert bodies.held == LARGE
        assert (await bodies.read(held, len(body), Pieces(chat(1000)), PLAIN)).user.value == "alice"
    assert not bodies.readers
    bodies.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "about"),
    [
        (chat(LARGE, "Zo\u00eb \U0001f600"), PLAIN),
        (chat(LARGE).replace(b"alice", rb"\ud800"), PLAIN),
        (chat(LARGE)[:-1], PLAIN),
        (b"[" * LARGE, PLAIN),
        (b"\xff" * LARGE, PLAIN),
        (chat(LARGE), PLAIN._replace(content_type=None)),
        (chat(LARGE), PLAIN._replace(endpoint=None)),
        (chat(LARGE), PLAIN._replace(limit=LARGE - 1)),
        (gzip.compress(chat(LARGE)), PLAIN._replace(content_encoding="br")),
        (
            b'--B\r\nContent-Disposition: form-data; name="user"\r\n\r\n'
            + "Zo\u00eb".encode() * LARGE
            + b"\r\n--B--",
            BodyContext("multipart/form-data; boundary=B", "", EDITS, LIMIT),
        ),
        (chat(LARGE).replace(b'"user"', b'"metadata":{"user_id":"bob"},"user"'), PLAIN),
    ],
)
async def test_the_same_attributes(bodies: Bodies, body: bytes, about: BodyContext) -> None:
    """Another process finds in a body what this one finds, unreadable ones among them."""
    with bodies.hold() as held:
        assert await bodies.read(held, 0, Pieces(body), PLAIN._replace(limit=0)) == read_body(
            body, *PLAIN._replace(limit=0)
        )
        assert await bodies.read(held, 0, Pieces(body), about) == read_body(body, *about)


async def test_other_work_goes_on() -> None:
    """While a large body is handed over and read, the event loop turns many times."""
    readers, turns = BodyReaders(), 0
    body = chat(LIMIT)

    async def other_work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    working = asyncio.create_task(other_work())
    await readers.read(lambda: None, Pieces(body), PLAIN)
    turns = 0
    assert (await readers.read(lambda: None, Pieces(body), PLAIN)).user.value == "alice"
    assert turns > LIMIT // MIB
    working.cancel()
    readers.close()


async def test_bodies_take_turns() -> None:
    """At most one body for each reader is read at once, and each request gets its own answer."""
    readers, begun = BodyReaders(), []

    def begin(number: int) -> Callable[[], None]:
        return lambda: begun.append(number)

    users = [f"user-{number}" for number in range(3 * READERS)]
    reading = [
        asyncio.create_task(readers.read(begin(number), Pieces(chat(LARGE, user)), PLAIN))
        for number, user in enumerate(users)
    ]
    await asyncio.sleep(0)
    assert len(begun) == READERS
    assert [found.user.value for found in await asyncio.gather(*reading)] == users
    assert len(readers.processes) == READERS
    assert begun == sorted(begun)
    readers.close()


async def test_a_reader_that_ends(caplog: pytest.LogCaptureFixture) -> None:
    """The body of a reader that is killed fails, and the next body gets a new reader. One that is
    killed between two bodies fails none."""
    readers = BodyReaders()
    await readers.read(lambda: None, Pieces(chat(LARGE)), PLAIN)
    (first,) = readers.processes
    os.kill(first, signal.SIGSTOP)
    reading = asyncio.create_task(readers.read(lambda: None, Pieces(chat(LIMIT)), PLAIN))
    await asyncio.sleep(0.05)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(BodiesFull, match="its reader failed"):
        await reading
    assert caplog.messages == [
        f"the process that read a body of {LIMIT} bytes has ended: the request is answered 503"
    ]
    assert not readers.processes
    await readers.read(lambda: None, Pieces(chat(LARGE)), PLAIN)
    (second,) = readers.processes
    os.kill(second, signal.SIGKILL)
    await asyncio.to_thread(os.waitid, os.P_PID, second, os.WEXITED | os.WNOWAIT)
    assert (await readers.read(lambda: None, Pieces(chat(LARGE)), PLAIN)).user.value == "alice"
    assert second not in readers.processes
    readers.close()


async def test_a_reader_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    """A reader that does not answer in time is killed, and its body fails."""
    readers = BodyReaders(patience=0.001)  # No process starts as quickly.
    with pytest.raises(BodiesFull, match="its reader failed"):
        await readers.read(lambda: None, Pieces(chat(LARGE)), PLAIN)
    assert caplog.messages == [
        f"the process that read a body of {LARGE} bytes hangs, and is killed: the request is "
        "answered 503"
    ]
    assert not readers.processes


async def test_a_reader_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A body for which no process starts fails, and the log says why."""
    monkeypatch.setattr(body_readers, "_COMMAND", ("/no-such-program",))
    readers = BodyReaders()
    with pytest.raises(BodiesFull) as error:
        await readers.read(lambda: None, Pieces(chat(LARGE)), PLAIN)
    assert str(error.value) == ("a request body could not be read, as its reader failed. Try again")
    assert caplog.messages == [
        "a process that reads bodies does not start: "
        "[Errno 2] No such file or directory: '/no-such-program'"
    ]
    readers.close()


def test_a_killed_reader_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells of a process that the system has not ended after a while."""
    monkeypatch.setattr(body_readers, "PATIENCE", 0.0)
    process = subprocess.Popen(("sleep", "5"))
    body_readers._reap(process)
    assert caplog.messages == [
        f"the process {process.pid}, which read bodies, was killed 0 s ago and has not ended"
    ]
    process.kill()
    process.wait()


def test_the_end_after_the_loops() -> None:
    """Readers can be ended where the event loop has ended before them."""
    readers = BodyReaders()
    asyncio.run(readers.read(lambda: None, Pieces(chat(LARGE)), PLAIN))
    (process,) = readers.processes
    readers.close()
    wait_until(lambda: not Path(f"/proc/{process}").exists())
    with warnings.catch_warnings():
        # A connection that no loop can close is closed as it is forgotten, with a warning.
        warnings.simplefilter("ignore", ResourceWarning)
        del readers
        gc.collect()


def test_no_thread_to_wait_for_the_end() -> None:
    """A process is killed, too, where no thread can start that waits for its end."""
    process = subprocess.Popen(("sleep", "60"))
    before = threading.stack_size(2**46)  # No address space is as large.
    try:
        body_readers._kill(process)
    finally:
        threading.stack_size(before)
    assert process.wait(10) == -signal.SIGKILL


def test_what_waits_for_the_end() -> None:
    """No exit waits for the thread that waits for the end of a killed process."""
    found: set[bool] = set()

    def note(*_: object) -> None:  # Each new thread calls it from its begin on.
        found.update(one.daemon for one in threading.enumerate() if one.name == "ended reader")

    threading.setprofile(note)
    try:
        body_readers._kill(subprocess.Popen(("sleep", "60")))
        wait_until(lambda: found)
    finally:
        threading.setprofile(None)
    assert found == {True}


@pytest.mark.parametrize(
    "end",
    [Future.cancel, lambda starting: starting.set_exception(OSError("no room"))],
    ids=["is called off", "fails"],
)
def test_a_start_whose_request_has_ended(
    end: Callable[["Future[Any]"], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """If the start of a reader fails, or is called off, there is nothing to end."""
    starting: Future[Any] = Future()
    starting.add_done_callback(body_readers._end_unwanted)
    end(starting)
    assert starting.done()
    assert caplog.messages == []


async def test_a_turn_that_does_not_come() -> None:
    """A body that waits too long for its turn fails, as one does whose reader hangs."""
    readers = BodyReaders(patience=0.001)
    reading = [readers.read(lambda: None, Pieces(chat(LARGE)), PLAIN) for _ in range(READERS + 1)]
    *_, last = await asyncio.gather(*reading, return_exceptions=True)
    assert isinstance(last, BodiesFull)
    assert "wait to be read" in str(last)
    assert not readers.processes


async def test_a_request_that_ends() -> None:
    """A request that is cancelled while its body is read takes its reader along: what is left of
    the body is on the way there."""
    readers = BodyReaders()
    await readers.read(lambda: None, Pieces(chat(LARGE)), PLAIN)
    (process,) = readers.processes
    os.kill(process, signal.SIGSTOP)
    reading = asyncio.create_task(readers.read(lambda: None, Pieces(chat(LIMIT)), PLAIN))
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not readers.processes
    assert (await readers.read(lambda: None, Pieces(chat(LARGE)), PLAIN)).user.value == "alice"
    readers.close()


async def test_an_end_while_a_body_is_read(bodies: Bodies) -> None:
    """The end of the process does not wait for a body that is being read."""
    body = chat(LARGE)
    with bodies.hold() as held:
        await bodies.read(held, 0, Pieces(body), PLAIN)
        (process,) = bodies.readers
        os.kill(process, signal.SIGSTOP)
        reading = asyncio.create_task(bodies.read(held, 0, Pieces(body), PLAIN))
        await asyncio.sleep(0.05)
        bodies.close()
        with pytest.raises(BodiesFull):
            await reading


@pytest.mark.parametrize("answer", [b"", b"\xc0", b"\x91\x01", b"x" * 100])
def test_an_answer_that_is_none(answer: bytes) -> None:
    """A reader's answer that is no attributes counts as none."""
    with pytest.raises(EOFError):
        read_answer(answer)
