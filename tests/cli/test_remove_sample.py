"""`policyd logs remove-sample`: what the demo made up goes, and nothing else."""

from datetime import timedelta

import msgspec

from policyd.demo import sample
from policyd.engine.states import Mode
from policyd.policies import TABLE
from policyd.store import LogFilter, Store
from tests.support.commands import invoke


def test_the_sample_goes(store: Store, url: str) -> None:
    """The made-up requests leave the log and every count; those that were really sent stay."""
    key, _ = store.keys.create("demo", TABLE.with_original(Mode.ENFORCE))
    sample.fill(store, key.id)
    records = store.log.page(LogFilter(), limit=20)
    kept = [
        msgspec.structs.replace(record, id=f"{record.id[:-8]}{'f' * 8}", sample=False, outcome=None)
        for record in records
    ]
    store.log.append(kept)
    done = invoke("policyd", "logs", "remove-sample", "--database-url", url)
    assert done.stdout.decode() == f"{sample.REQUESTS} made-up requests were removed.\n"
    assert store.log.status().decisions == len(kept)
    assert {record.id for record in store.log.page(LogFilter())} == {one.id for one in kept}
    span = (store.time() - timedelta(days=30), store.time())
    by_user = store.statistics.users(*span)
    assert sum(counts.requests for _, counts in by_user) == len(kept)
    assert {user for user, _ in by_user} == {one.end_user for one in kept}
    hours = store.statistics.hours(*span)
    assert sum(counts.requests for _, counts in hours) == len(kept)
    for counts in (counts for _, counts in (*by_user, *hours)):
        assert counts.requests
        assert (counts.input_tokens, counts.cost_nano, counts.timed, counts.errors) == (0, 0, 0, 0)


def test_nothing_made_up(store: Store, url: str) -> None:
    """Where there is no sample, nothing happens."""
    done = invoke("policyd", "logs", "remove-sample", "--json", "--database-url", url)
    assert (done.returncode, done.stdout) == (0, b'{"deleted": 0}\n')
    assert store.log.status().decisions == 0
