"""The process that shipping.py measures: it takes a spool to a database, and prints the cost.

Call one of its functions with the spool's folder and the database's URL as arguments of the
process.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import sqlalchemy as sa

from benchmarks.processes import cpu_seconds
from policyd.decision_log.pricing import cost
from policyd.decision_log.record import Outcome, Record
from policyd.decision_log.shipper import Shipper
from policyd.decision_log.spool import SpoolReader
from policyd.store import Store
from policyd.store.destination import StoreDestination

_CHUNK = 2**20


def ship() -> None:
    """Ship all of the spool, as policyd does."""
    folder, url = Path(sys.argv[1]), sys.argv[2]
    store = Store(url)
    shipper = Shipper(StoreDestination(store), SpoolReader(folder))
    cost("gpt-4o", 1, 0, 0, 0, datetime.now(UTC))  # Loads the list of prices, once a process.
    store.log.status()
    _measured(store, shipper.ship)


def insert() -> None:
    """Insert the spool's rows with the driver, and nothing else. The spool stays."""
    folder, url = Path(sys.argv[1]), sys.argv[2]
    chunks = list(_rows(folder))
    store = Store(url)
    store.log.status()
    engine = store._engine
    columns = sa.Table("decisions", sa.MetaData(), autoload_with=engine).columns.keys()
    mark = "?" if engine.dialect.name == "sqlite" else "%s"
    names, marks = ", ".join(columns), ", ".join([mark] * len(columns))
    statement = f"INSERT INTO decisions ({names}) VALUES ({marks})"  # noqa: S608  # our own names
    places = [_COLUMNS.index(name) for name in columns]
    chunks = [[tuple(row[place] for place in places) for row in rows] for rows in chunks]

    def work() -> None:
        for rows in chunks:
            with engine.begin() as connection:
                connection.connection.cursor().executemany(statement, rows)

    _measured(store, work)


_PLACE = Record.__struct_fields__.index("outcome")
_COLUMNS = [
    *(name for name in Record.__struct_fields__ if name != "outcome"),
    *(f"outcome_{name}" for name in Outcome.__struct_fields__[1:]),
]


def _rows(folder: Path) -> Iterator[list[tuple[object, ...]]]:
    """The rows of each chunk of the spool, in the order of _COLUMNS."""
    decode = msgspec.json.Decoder(Record | Outcome).decode
    empty = (None,) * (len(Outcome.__struct_fields__) - 1)
    reader = SpoolReader(folder)
    for chunk in reader.chunks(_CHUNK):
        reader.done(chunk)
        found: dict[str, list[object]] = {}
        for entry in map(decode, chunk.lines):
            values = msgspec.to_builtins(entry)[1:]
            if isinstance(entry, Record):
                del values[_PLACE]
                found[entry.id] = [*values, *empty]
            elif entry.decision_id in found:
                found[entry.decision_id][-len(empty) :] = values[1:]
        yield [tuple(row) for row in found.values()]


def _measured(store: Store, work: Callable[[], object]) -> None:
    before, server = time.process_time(), _server(store)
    work()
    rows = store.log.status().decisions or _count(store)
    figures = {"cpu": time.process_time() - before, "server": _server(store) - server}
    print(json.dumps({name: 1e6 * value / rows for name, value in figures.items()}))


def _count(store: Store) -> int:
    with store._engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM decisions").scalar_one())


def _server(store: Store) -> float:
    """Seconds of CPU that all processes of a PostgreSQL have taken."""
    if store._engine.dialect.name == "sqlite":
        return 0.0
    with store._engine.connect() as connection:
        folder = connection.exec_driver_sql("SHOW data_directory").scalar_one()
    first = int(Path(folder, "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    return sum(map(cpu_seconds, map(int, children)))
