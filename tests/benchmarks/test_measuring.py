"""What the benchmark measures with: load, CPU time of processes, charts, the figures of pages."""

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks import pages
from benchmarks.findings import Chart, Figure
from benchmarks.load import LoadFailed, Target, http_target, send
from benchmarks.open_loop import send_at
from benchmarks.processes import Tree, tree
from benchmarks.svg import draw

_STALL = 0.4
_BURN = "import time; end = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
_PARENT = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1] + "
    "'\\nprint(flush=True); input()'], stdin=subprocess.PIPE); input()"
)


@asynccontextmanager
async def answering(status: int, stall: float = 0.0) -> AsyncIterator[Target]:
    """A server that answers nothing for so many seconds from the first request on, and then with
    this status."""
    until = 0.0
    answers: list[asyncio.Task[None]] = []

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers.append(asyncio.create_task(answer(reader, writer)))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal until
        while head := await reader.read(65536):
            assert head.startswith(b"POST /v1 ")
            until = until or time.monotonic() + stall
            await asyncio.sleep(max(0.0, until - time.monotonic()))
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield http_target(f"http://127.0.0.1:{port}/v1", b"{}", {"x": "y"})
        await asyncio.gather(*answers)


async def test_all_calls_are_answered_and_timed() -> None:
    async with answering(200) as target:
        load = await send(target, 4, 40)
    assert (load.calls, len(load.took)) == (40, 40)
    assert load.took == sorted(load.took)


async def test_another_status_is_an_error() -> None:
    async with answering(503) as target:
        with pytest.raises(LoadFailed, match="503"):
            await send(target, 4, 40)


async def test_requests_that_were_due_while_the_server_stalled_are_late() -> None:
    async with answering(200, _STALL) as target:
        load = await send_at(target, 400, 1.0)
    assert load.calls == 400
    # More were due than there are connections: those that waited for one are late, too.
    assert sum(took > _STALL / 4 for took in load.took) > 64


def test_the_processes_that_a_program_starts_count() -> None:
    command = [sys.executable, "-c", _PARENT, _BURN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        assert len(tree(process.pid)) == 2
        parts = [Tree(process.pid, only="process_time"), Tree(process.pid, but="import subprocess")]
        whole = Tree(process.pid).cpu()
        assert sum(whole.values()) >= 0.2
        assert [len(part.cpu()) for part in parts] == [2, 1]
        process.kill()
        process.stdin.close()


def test_a_chart_has_a_bar_for_each_part_as_long_as_its_value() -> None:
    groups = {"16 at once": {"a & b": {"ours": 2.0, "theirs": 1.0}, "c": {"ours": 4.0}}}
    drawn = draw(Chart("name", "What", "s", groups))
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="15"', drawn)]
    assert [width / widths[1] for width in widths] == pytest.approx([2, 1, 4], rel=0.01)


def test_both_pages_have_a_place_for_the_figures() -> None:
    text = pages.summary(
        {"envoy: Envoy, checked beside Envoy, no check, rate, at 16": Figure(0.11, 0.1, 0.12)}
    )
    assert text.splitlines()[2:] == [
        "| Envoy with the check beside Envoy without: requests/s | - | 0.11 | - |"
    ]
    for page in pages.PAGES:
        before = page.read_text()
        after = pages.replaced(before, text)
        assert after.count(text) == 1
        assert after.partition(pages.BEGIN)[0] == before.partition(pages.BEGIN)[0]
        assert after.partition(pages.END)[2] == before.partition(pages.END)[2]
