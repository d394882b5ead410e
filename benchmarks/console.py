"""The console over a large log: `python -m benchmarks.console --rows 1000000`.

It is not part of `make bench`, because filling a log takes minutes. A database of an earlier run
that has as many decisions is used again.
"""

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import aiohttp
import click

from policyd.command.address import Address
from policyd.console import ConsoleServer, console_url
from policyd.decision_log.record import Ending, Outcome, Record, Verdict, first_id
from policyd.decision_log.refused_key import RefusedKeyCount
from policyd.engine.states import Ignored, Mode, Source, UserState
from policyd.server.preparation import prepare
from policyd.settings import ServerSettings
from policyd.store import LogFilter, Store
from policyd.store.database import now

_CHUNK = 5000
_KEYS = 20
_SPACING = timedelta(seconds=2)
"""Between two decisions: a million of them are 23 days."""


@click.command()
@click.option("--rows", default=1_000_000, help="Decisions in the log.")
@click.option("--requests", default=100, help="Of each page.")
@click.option("--database-url", default="", help="By default SQLite, in a temporary folder.")
def main(rows: int, requests: int, database_url: str) -> None:
    """Measure how long the console's pages take, and print it as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        url = database_url or f"sqlite:///{folder}/policyd.db"
        settings = ServerSettings(
            database_url=url,
            grpc=Address("127.0.0.1", 0),
            admin=Address("127.0.0.1", 0),
            admin_token_file=Path(folder) / "admin-token",
            spool=Path(folder) / "spool",
            console=Address("127.0.0.1", 0),
        )
        prepare(settings)
        store = Store(url)
        store.migrate()
        _fill(store, rows)
        click.echo(f"{store.log.status().decisions:,} decisions in {url.partition(':')[0]}\n")
        asyncio.run(_measure(settings, store, requests))
        store.close()


def _fill(store: Store, rows: int) -> None:
    missing = rows - store.log.status().decisions
    if missing <= 0:
        return
    keys = [store.keys.create(f"key {number}")[0].id for number in range(_KEYS)]
    chance = random.Random(1)
    start = now() - missing * _SPACING
    for done in range(0, missing, _CHUNK):
        entries: list[Record | Outcome] = []
        for number in range(done, min(done + _CHUNK, missing)):
            entries += _entries(chance, first_id(start + number * _SPACING), number, keys)
        store.log.append(entries)
    _refuse(store, 770)


def _refuse(store: Store, stretches: int) -> None:
    """Fill in as many refused keys as policyd keeps: the sources of so many minutes."""
    last = int(now().timestamp()) // 60
    for number in range(stretches):
        minute = last - number
        store.log.append(
            [
                RefusedKeyCount("bench", number, minute, f"10.0.0.{source}", 1, 5, 0)
                for source in range(65)
            ]
        )


def _entries(
    chance: random.Random, time_part: str, number: int, keys: list[str]
) -> Iterator[Record | Outcome]:
    is_blocked = chance.random() < 0.1
    state = UserState.ABSENT if is_blocked else UserState.VALID
    record = Record(
        id=f"{time_part}{number:020x}",
        verdict=Verdict.DENIED if is_blocked else Verdict.ALLOWED,
        status=422 if is_blocked else 0,
        key_id=chance.choice(keys),
        operation=chance.choice(("chat_completion", "embedding", "response")),
        mode=Mode.ENFORCE,
        source=Source.KEY,
        ignored=Ignored.NOT_IGNORED,
        in_scope=True,
        user_state=state,
        identifier="user",
        summary="Denied: the field user is absent." if is_blocked else "Allowed.",
        flags="policy_enforce_user_ids" if is_blocked else "",
        revision=1,
        body_user=state,
        body_safety_identifier=UserState.ABSENT,
        overrides="",
        end_user="" if is_blocked else _user(chance),
        model=chance.choice(("gpt-4o", "gpt-4o-mini", "o3")),
        method="POST",
        path="/v1/chat/completions",
        source_ip="10.0.0.1",
        user_agent=f"OpenAI/Python 1.{chance.randrange(40)}",
        trace_id=f"trace-{number // 3}",
        request_id=f"req-{number}",
    )
    yield record
    if not is_blocked:
        yield Outcome(
            record.id,
            Ending.COMPLETE,
            status=200,
            first_byte_us=300_000,
            duration_us=2_000_000,
            openai_id=f"chatcmpl-{number}",
            input_tokens=900,
            output_tokens=200,
            cost_nano=250_000,
        )


def _user(chance: random.Random) -> str:
    if chance.random() < 0.03:
        return chance.choice(("undefined", "null", "{{user_id}}"))
    return f"user-{int(chance.paretovariate(0.6)) % 50_000}"


def _pages(store: Store) -> dict[str, str]:
    """The pages to measure, by their names in the console."""
    newest = store.log.page(LogFilter(), limit=1)[0]
    oldest = store.log.status().oldest
    assert oldest is not None
    middle = first_id(oldest + (newest.time - oldest) / 2) + "0" * 20
    key = store.keys.list(limit=1)[0].id
    day = f"{oldest + timedelta(days=1):%Y-%m-%dT%H:%M}"
    return {
        "Logs": "/logs",
        "Logs, in the middle": f"/logs?after={middle}",
        "Logs of a key": f"/logs?key={key}",
        "Logs, blocked": "/logs?decision=denied",
        "Logs, flagged": "/logs?flag=policy_enforce_user_ids",
        "Logs of an operation": "/logs?operation=embedding",
        "Logs of a user": "/logs?user=user-1",
        "Logs of a rare user": "/logs?user=user-4321",
        "Logs of an unknown user": "/logs?user=unknown-user",
        "Logs of a trace": f"/logs?trace={newest.trace_id}",
        "Logs until a day": f"/logs?until={day}",
        "Logs, a key's blocked ones of a user's": f"/logs?key={key}&decision=denied&user=user-1",
        "Logs, found by a trace's ID": f"/logs?find={newest.trace_id}",
        "Logs, found by no ID": "/logs?find=no-such-id",
        "Log Details": f"/logs/{newest.id}",
        "End users, 7 days": "/users",
        "End users, 30 days": "/users?period=30d",
        "End users, 30 days, by cost": "/users?period=30d&sort=cost",
        "End users, 30 days, by latency": "/users?period=30d&sort=latency",
        "End users, 30 days, found by a part": "/users?period=30d&find=r-43",
        "Refused keys, 30 days": "/refused?period=30d",
        "Dashboard": "/",
        "Dashboard, 30 days": "/?period=30d",
        "What enforcing would block, 24 hours": f"/keys/{key}/simulation",
        "What enforcing would block, 7 days": f"/keys/{key}/simulation?period=7d",
        "API Keys": "/keys",
        "API Keys, by last use": "/keys?sort=used",
        "History of a key": f"/keys/{key}/history",
        "Audit": "/audit",
        "Try a request": "/try",
    }


async def _measure(settings: ServerSettings, store: Store, requests: int) -> None:
    async with (
        ConsoleServer(settings, store) as server,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
    ):
        url = f"{console_url(settings).rpartition(':')[0]}:{server.address.port}"
        form = {"password": settings.admin_token_file.read_text().strip()}
        await session.post(f"{url}/sign-in", data=form, headers={"Origin": url})
        click.echo("| page | 50 % | 99 % |\n|---|---|---|")
        for name, path in _pages(store).items():
            took = [await _time(session, url + path) for _ in range(requests)]
            median, tail = statistics.median(took), statistics.quantiles(took, n=100)[98]
            click.echo(f"| {name} | {1000 * median:.0f} ms | {1000 * tail:.0f} ms |")


async def _time(session: aiohttp.ClientSession, url: str) -> float:
    started = time.perf_counter()
    async with session.get(url, allow_redirects=False) as answer:
        await answer.read()
        # A search that finds one request redirects to it.
        assert answer.status in (200, 303), (url, answer.status)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
