"""Gateways that decide by themselves stand beside the workers that they follow."""

import sqlalchemy as sa

from policyd.store import Store, schema
from policyd.store.engine import open_engine
from policyd.store.workers import Gateway, furthest_off


def running(store: Store) -> dict[str, tuple[int, bool]]:
    return {one.id: (one.revision, one.is_gateway) for one in store.workers.list()}


def test_gateways_come_and_go(store: Store) -> None:
    """One beat reports the worker, its gateways, and the gateways that have left."""
    store.keys.create("one")
    known = store.keys.changes_since(0)
    there = Gateway("0" * 12, "g-1", known.revision, known.epoch)
    elsewhere = Gateway("1" * 12, "g-2", known.revision, "another")
    beat = store.workers.beat
    beat("w", "host", known.revision, known.epoch, [there, elsewhere])
    assert running(store) == {
        "w": (known.revision, False),
        there.id: (known.revision, True),
        # This database does not have that revision with that epoch.
        elsewhere.id: (0, True),
    }
    found = furthest_off(store.workers.list())
    assert found is not None
    assert found[0] == "host"
    beat("w", "host", known.revision, known.epoch, [there], {elsewhere.id})
    assert set(running(store)) == {"w", there.id}
    # One that changes over to another worker.
    beat("v", "host", known.revision, known.epoch, [there])
    store.workers.leave("w", there.id)
    assert set(running(store)) == {"v"}


def test_gateways_hold_up_no_rotation(store: Store, new_database: str) -> None:
    """The settings that gateways get have rotation in them, so gateways do not count as older
    servers."""
    key, _ = store.keys.create("one")
    store.workers.beat("w", "host", 1, "", [Gateway("0" * 12, "g", 1, "")])
    store.apply([], None)
    engine = open_engine(new_database)
    with engine.connect() as connection:
        forms_told = connection.execute(sa.text("SELECT DISTINCT form FROM workers")).scalars()
        assert len(list(forms_told)) == 1
    engine.dispose()
    assert store.keys.get(key.id).revoked_at is None


def test_the_form_before(store: Store, new_database: str) -> None:
    """Back to it, gateways leave, and come again with the next beat."""
    store.workers.beat("w", "host", 1, "", [Gateway("0" * 12, "g", 1, "")])
    engine = open_engine(new_database)
    schema.downgrade(engine, "0013")
    with engine.connect() as connection:
        left = connection.execute(sa.text("SELECT id FROM workers")).scalars()
        assert list(left) == ["w"]
    store.migrate()
    assert running(store) == {"w": (0, False)}
    store.workers.beat("w", "host", 1, "", [Gateway("0" * 12, "g", 1, "")])
    assert len(running(store)) == 2
    engine.dispose()
