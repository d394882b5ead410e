"""The gateway, compared with its own pass-through, which asks no policy; and its denials."""

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

import aiohttp

from benchmarks import traffic
from benchmarks.processes import POLICYD_IS_READY, Program, create_key, policyd, started
from benchmarks.rounds import CONCURRENCIES, Case, Plan, Turns, ratios, table, take_turns

PASS_THROUGH, CHECKED, REFUSED = "pass-through", "checked", "refused (422)"
GATEWAY, POLICYD, UPSTREAM = "gateway", "policyd", "upstream"
READY = r"policyd-gateway is ready: (\S+)"


class _Programs(NamedTuple):
    key: str
    policyd: Program
    upstream: Program
    checking: Program
    passing: Program


async def run(folder: Path, plan: Plan) -> str:
    """Measure, and give the result as Markdown. `folder` is for the database."""
    with ExitStack() as running:
        programs = _start(folder, running)
        connector = aiohttp.TCPConnector(limit=0, force_close=False)
        async with aiohttp.ClientSession(connector=connector) as session:
            cases = _cases(session, programs)
            found = {number: await take_turns(cases, number, plan) for number in CONCURRENCIES}
    return _table(found)


def _start(folder: Path, running: ExitStack) -> _Programs:
    database_url = f"sqlite:///{folder}/gateway.db"
    key = create_key(database_url)
    server = running.enter_context(started(*policyd(database_url), ready=POLICYD_IS_READY))
    upstream = running.enter_context(start_upstream())
    flags = (
        *("serve", "--listen", "127.0.0.1:0"),
        *("--policyd", server.places[0], "--upstream", upstream.places[0]),
    )
    checking = running.enter_context(started("policyd-gateway", *flags, ready=READY))
    passing = running.enter_context(
        started("python", "-m", "benchmarks.pass_through", *flags, ready=READY)
    )
    return _Programs(key, server, upstream, checking, passing)


def start_upstream() -> AbstractContextManager[Program]:
    """The demo upstream, in a process of its own until the end of the block."""
    return started(
        *("uvicorn", "--factory", "policyd.demo.upstream:DemoUpstream"),
        *("--port", "0", "--no-access-log", "--no-use-colors"),
        ready=r"running on (http://\S+)",
    )


def _cases(session: aiohttp.ClientSession, programs: _Programs) -> list[Case]:
    checked = {
        GATEWAY: programs.checking.pid,
        POLICYD: programs.policyd.pid,
        UPSTREAM: programs.upstream.pid,
    }
    passed = checked | {GATEWAY: programs.passing.pid}
    asker = Asker(session, traffic.headers(programs.key))
    chat, anonymous = traffic.body(), traffic.body(user=None)
    passing, checking = programs.passing.places[0], programs.checking.places[0]
    return [
        Case(PASS_THROUGH, lambda: asker.ask(passing, chat, 200), passed),
        Case(CHECKED, lambda: asker.ask(checking, chat, 200), checked),
        Case(REFUSED, lambda: asker.ask(checking, anonymous, 422), checked),
    ]


class Asker:
    """Posts chats with given headers, and expects a status."""

    def __init__(self, session: aiohttp.ClientSession, headers: list[tuple[str, str]]) -> None:
        self._session = session
        self._headers = headers

    async def ask(self, gateway: str, body: bytes, expected: int) -> None:
        """Raises RuntimeError where the status is another."""
        asking = self._session.post(gateway + traffic.PATH, data=body, headers=self._headers)
        async with asking as response:
            answer = await response.read()
            if response.status != expected:
                raise RuntimeError(f"answered {response.status}: {answer!r}")


def _table(found: dict[int, Turns]) -> str:
    programs = (GATEWAY, POLICYD, UPSTREAM)
    columns = (
        *("requests at once", "what", "requests/s", f"beside {PASS_THROUGH}", "p50 ms", "p99 ms"),
        *(f"{name} CPU s per 10,000" for name in programs),
    )
    rows = [
        (
            *(concurrency, name, f"{median(turn.rate for turn in measured):.0f}"),
            ratios(measured, turns[PASS_THROUGH]),
            f"{1e3 * median(turn.p50 for turn in measured):.2f}",
            f"{1e3 * median(turn.p99 for turn in measured):.2f}",
            *(f"{1e4 * median(t.cpu[program] for t in measured):.2f}" for program in programs),
        )
        for concurrency, turns in found.items()
        for name, measured in turns.items()
    ]
    return table("The gateway beside its own pass-through", columns, rows)
