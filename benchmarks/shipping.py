"""What it costs to ship a row of the decision log, beside inserting the same rows with the driver.

A row is a decision with its outcome. `loop` ships a backlog as fast as it goes; `live` is the
background worker of a server while entries come in. CPU time is that of the whole process that
ships; what PostgreSQL's own processes take beside it is a figure of its own.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from benchmarks.processes import (
    BACKGROUND,
    POLICYD_IS_READY,
    ROOT,
    Tree,
    environment,
    policyd,
    started,
)
from benchmarks.rounds import Plan
from policyd.decision_log.record import Outcome, Record
from policyd.decision_log.spool import SpoolWriter
from policyd.store import Store
from tests.support.postgresql import PostgreSQL
from tests.support.records import outcome, record

_ROWS = 20_000
"""Rows of a backlog."""
_HOURS = 5
"""Hours that a backlog is from."""
_KEYS = [f"key_{number:016x}" for number in range(50)]
_AGENTS = ("OpenAI/Python 1.54.0", "OpenAI/JS 6.9.1", "anthropic-python/0.39.0", "curl/8.5.0")
_MODELS = (
    *("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "o3", "o3-mini"),
    *("o4-mini", "gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-5.4", "text-embedding-3-small"),
    *("text-embedding-3-large", "claude-sonnet-4-5", "claude-opus-4-6", "claude-3-5-haiku-latest"),
    *("mistral-large-latest", "llama-3.3-70b-instruct", "in-house-model"),
)


class _Mix(NamedTuple):
    """How many keys, end users and models the requests have, each user with one of the keys."""

    keys: int
    users: int
    models: int


_WIDE = _Mix(len(_KEYS), 1000, len(_MODELS))
_NARROW = _Mix(1, 1, 1)
_AT_ONCE = 32
"""Requests that run at the same time: as many decisions lie between one and its outcome."""
_RATES = (200, 1000)
"""Rows a second, live."""
_LIMIT = 2**33
_PIECE = 0.02
"""Seconds between two writes of entries, live."""
_SETTLE = 3.0
"""Seconds for which a server runs before it is measured, and has to ship what is left."""
_SHIP = "from benchmarks.shipping_process import ship; ship()"
_INSERT = "from benchmarks.shipping_process import insert; insert()"


def measure(folder: Path, plan: Plan) -> dict[str, float]:
    """Microseconds of CPU for a row, and ratios, by name: medians over the rounds."""
    rounds: list[dict[str, float]] = []
    with ExitStack() as running:
        server = running.enter_context(_postgresql())
        for number in range(plan.rounds):
            if rounds and time.monotonic() > plan.until:
                break
            place = folder / f"shipping-{number}"
            place.mkdir()
            rounds.append(_round(place, server, plan))
            sys.stderr.write(f"  round {number + 1} of {plan.rounds}\n")
    return {name: float(f"{median(one[name] for one in rounds):.3g}") for name in rounds[0]}


@contextmanager
def _postgresql() -> Iterator[PostgreSQL | None]:
    """A PostgreSQL, where Debian's package is installed."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        sys.stderr.write("  PostgreSQL is not installed, and is not measured\n")
        yield None
        return
    with PostgreSQL() as server:
        yield server


def _round(folder: Path, server: PostgreSQL | None, plan: Plan) -> dict[str, float]:
    rows = min(plan.rows or _ROWS, _ROWS)
    found = _loop(
        folder, f"sqlite:///{folder}/loop.db", f"sqlite:///{folder}/driver.db", rows, "SQLite"
    )
    if server:
        with server.database() as url, server.database() as other:
            found |= _loop(folder, url, other, rows, "PostgreSQL")
    for rate in _RATES:
        found[f"SQLite, live, {rate} rows/s"] = _live(folder, rate, plan.seconds, _WIDE)
        name = f"SQLite, live, {rate} rows/s of one key, end user and model"
        found[name] = _live(folder, rate, plan.seconds, _NARROW)
    return found


def _loop(folder: Path, url: str, other: str, rows: int, name: str) -> dict[str, float]:
    spool = folder / f"spool-{name}"
    fill(spool, rows, share=1.0)
    # First, as the shipper deletes what it has shipped.
    inserted = _process(_INSERT, spool, other)
    shipped = _process(_SHIP, spool, url)
    found = {f"{name}, loop": shipped["cpu"], f"{name}, the driver alone": inserted["cpu"]}
    found[f"{name}, loop beside the driver"] = shipped["cpu"] / inserted["cpu"]
    if shipped["server"]:
        found[f"{name}, loop: its own processes"] = shipped["server"]
        found[f"{name}, the driver alone: its own processes"] = inserted["server"]
    return found


def _process(code: str, spool: Path, url: str) -> dict[str, float]:
    """Microseconds of CPU for a row of a process that takes the spool to the database."""
    store = Store(url)
    store.migrate()
    store.close()
    command = (sys.executable, "-c", code, str(spool), url)
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=600
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def fill(spool: Path, rows: int, share: float, *, until: datetime | None = None) -> None:
    """Write a backlog of so many decisions into a spool; `share` of them have outcomes with
    tokens, and the others have none."""
    spool.mkdir(mode=0o700)
    with closing(SpoolWriter(spool, "benchmark", _LIMIT)) as writer:
        end = until or datetime.now(UTC)
        step = timedelta(hours=_HOURS) / rows
        for lines in entries(random.Random(1), end - rows * step, step, rows, share):
            writer.write(lines)


def entries(
    chance: random.Random,
    begin: datetime,
    step: timedelta,
    rows: int,
    share: float,
    mix: _Mix = _WIDE,
) -> Iterator[bytes]:
    """The lines of so many decisions and their outcomes, in the order in which they are written."""
    encode = msgspec.json.Encoder().encode_lines
    running: list[Outcome] = []
    for number in range(rows):
        decision = _decision(chance, begin + number * step, mix)
        yield encode([decision])
        if chance.random() < share:
            running.append(_outcome(chance, decision))
        if len(running) > _AT_ONCE:
            yield encode([running.pop(chance.randrange(_AT_ONCE))])
    yield encode(running)


def _decision(chance: random.Random, at: datetime, mix: _Mix) -> Record:
    user = int(mix.users * chance.random() ** 2)
    return msgspec.structs.replace(
        record(at),
        key_id=_KEYS[user % mix.keys],
        end_user=f"user-{user:04}@example.com",
        model=chance.choice(_MODELS[: mix.models]),
        method="POST",
        path="/v1/chat/completions",
        source_ip=f"192.0.2.{chance.randrange(250)}",
        user_agent=chance.choice(_AGENTS),
        trace_id=f"{chance.getrandbits(128):032x}" if chance.random() < 0.5 else "",
        token_limit=4096,
        prompt_chars=chance.randrange(20_000),
    )


def _outcome(chance: random.Random, decision: Record) -> Outcome:
    tokens = chance.randrange(1, 20_000)
    return msgspec.structs.replace(
        outcome(decision),
        first_byte_us=chance.randrange(100_000, 900_000),
        duration_us=int(10 ** chance.uniform(5, 7.5)),
        openai_id=f"chatcmpl-{chance.getrandbits(120):030x}",
        model=decision.model,
        input_tokens=tokens,
        output_tokens=chance.randrange(2000),
        cached_tokens=tokens // 2 if chance.random() < 0.3 else 0,
        cost_nano=None,
    )


def _live(folder: Path, rate: int, seconds: float, mix: _Mix) -> float:
    """Microseconds of CPU that a server's background worker takes for a row."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        spool = Path(place, "spool")
        command = policyd(f"sqlite:///{place}/live.db")
        with started(*command, "--spool", str(spool), ready=POLICYD_IS_READY) as server:
            worker = Tree(server.pid, only=BACKGROUND)
            with closing(SpoolWriter(spool, "benchmark", _LIMIT)) as writer:
                _write(writer, rate, _SETTLE, mix)
                before = sum(worker.cpu().values())
                rows = _write(writer, rate, seconds, mix)
                return 1e6 * (sum(worker.cpu().values()) - before) / rows


def _write(writer: SpoolWriter, rate: int, seconds: float, mix: _Mix) -> int:
    """Write entries at a rate. Returns how many decisions there were."""
    chance = random.Random()  # keeps no secret
    rows = int(rate * seconds)
    step = timedelta(seconds=1) / rate
    began, due = time.monotonic(), 0.0
    for number, lines in enumerate(entries(chance, datetime.now(UTC), step, rows, 1.0, mix)):
        writer.write(lines)
        # Every decision has an outcome: two writes for a row.
        due = number / 2 / rate
        if (ahead := began + due - time.monotonic()) > _PIECE:
            time.sleep(ahead)
    return rows
