"""Keys searched, sorted and changed several at once, on every database."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from policyd.engine.settings import ApiKey, Settings
from policyd.engine.states import Mode
from policyd.errors import EtagMismatch, InvalidArgument, KeyNotFound
from policyd.keys.audit import Action
from policyd.policies import TABLE
from policyd.store import KeyFilter, Store
from policyd.store.engine import open_engine
from policyd.store.key_list import SORTS, page_query
from policyd.store.keys import list_query
from tests.support.records import START, record

ENFORCE = TABLE.with_original(Mode.ENFORCE)


def _made(store: Store, *names: str) -> list[ApiKey]:
    return [store.keys.create(name)[0] for name in names]


def _names(found: list[ApiKey]) -> list[str]:
    return [key.name for key in found]


def _etags(keys: list[ApiKey]) -> dict[str, str]:
    return {key.id: key.etag for key in keys}


def test_searching(store: Store) -> None:
    """A key is found by a part of its name in any letter case, by its ID, and by the end of its
    secret; the text is taken as it is."""
    app, other, odd = _made(store, "Support Chat", "search", r"100%_\ sure")
    _, secret = store.keys.create("fourth")
    for text, wanted in (
        ("CHAT", [app]),
        ("s", [app, other, odd]),
        (other.id, [other]),
        ("%", [odd]),
        ("_", [odd]),
        ("\\", [odd]),
        ("no such key", []),
        ("\0", []),
    ):
        assert store.key_list.page(KeyFilter(text)) == wanted, text
    assert _names(store.key_list.page(KeyFilter(secret[-4:]))) == ["fourth"]


def test_sorting(store: Store) -> None:
    """Keys are sorted by name in any letter case, by age, and by when they were used last. Keys
    that were never used count as the least recently used."""
    beta, alpha, gamma = _made(store, "beta", "Alpha", "gamma")
    later = START + timedelta(days=3)
    store.log.append([record(START, key_id=gamma.id), record(later, key_id=alpha.id)])
    orders = {
        "name": [alpha, beta, gamma],
        "created": [beta, alpha, gamma],
        "used": [beta, gamma, alpha],
    }
    assert set(orders) == set(SORTS)
    for sort, wanted in orders.items():
        page = store.key_list.page
        assert page(KeyFilter(), sort=sort) == wanted
        assert page(KeyFilter(), sort=sort, descending=True) == wanted[::-1]
        for number, key in enumerate(wanted):
            behind, ahead = wanted[number + 1 :], wanted[:number]
            assert page(KeyFilter(), sort=sort, after=key.id) == behind
            assert page(KeyFilter(), sort=sort, after=key.id, limit=1) == behind[:1]
            assert page(KeyFilter(), sort=sort, before=key.id, limit=1) == ahead[-1:]
            assert page(KeyFilter(), sort=sort, descending=True, after=key.id) == ahead[::-1]
            assert page(KeyFilter(), sort=sort, descending=True, before=key.id) == behind[::-1]
        assert page(KeyFilter(), sort=sort, after="key_none") == wanted
        assert page(KeyFilter(), sort=sort, before="\0") == wanted


def test_last_used(store: Store) -> None:
    """The log tells when a key was used last, to the millisecond."""
    one, other, unused = _made(store, "one", "other", "unused")
    later = START + timedelta(milliseconds=1500)
    store.log.append([record(START, key_id=one.id), record(later, key_id=one.id)])
    store.log.append([record(START, key_id=other.id)])
    found = store.key_list.last_used([one.id, other.id, unused.id])
    assert found == {one.id: later, other.id: START}
    assert store.key_list.last_used([]) == {}


def test_revoked_keys(store: Store) -> None:
    """Revoked keys are listed where they are asked for."""
    kept, gone = _made(store, "kept", "gone")
    store.keys.revoke(gone.id)
    assert _names(store.key_list.page(KeyFilter())) == ["kept"]
    assert _names(store.key_list.page(KeyFilter(show_revoked=True))) == ["kept", "gone"]
    found = store.key_list.chosen([gone.id, "key_0", "\0", kept.id])
    assert _names(found) == ["kept", "gone"]


def test_several_at_once(store: Store) -> None:
    """Several keys change in one revision, each with a record in the audit trail. One that has the
    settings already stays as it is."""
    keys = _made(store, "one", "two", "three")
    already = store.keys.update(keys[2].id, {"policies": ENFORCE})
    before = store.keys.changes_since(0).revision
    records = len(store.audit.list())
    chosen = _etags([*keys[:2], already])
    after = store.key_batches.set_policies(chosen, ENFORCE, by="console 192.0.2.7")
    assert [key.policies for key in after] == [already.policies] * 3
    assert [key.revision for key in after] == [before + 1, before + 1, already.revision]
    assert store.keys.changes_since(0).revision == before + 1
    trail = store.audit.list()
    assert len(trail) == records + 2
    assert {(one.key_name, one.by) for one in trail[:2]} == {
        ("one", "console 192.0.2.7"),
        ("two", "console 192.0.2.7"),
    }
    assert store.key_batches.set_policies(_etags(after), ENFORCE) == after
    assert store.keys.changes_since(0).revision == before + 1


def test_revoking_several(store: Store) -> None:
    """Several keys are revoked in one revision."""
    keys = _made(store, "one", "two")
    after = store.key_batches.revoke(_etags(keys))
    assert len({key.revision for key in after}) == 1
    assert all(key.revoked_at for key in after)
    with pytest.raises(EtagMismatch):
        store.key_batches.revoke(_etags(after))


def test_all_or_none(store: Store) -> None:
    """Where one key cannot be changed, none is."""
    keys = _made(store, "one", "two")
    revision = store.keys.changes_since(0).revision

    def fail(_: Settings) -> Settings:
        raise InvalidArgument("no")

    stale = _etags(keys) | {keys[1].id: "1-2"}
    for chosen, policies, error in (
        (stale, ENFORCE, EtagMismatch),
        (_etags(keys) | {"key_0": "1"}, ENFORCE, KeyNotFound),
        (_etags(keys), fail, InvalidArgument),
    ):
        with pytest.raises(error):
            store.key_batches.set_policies(chosen, policies)
    with pytest.raises(EtagMismatch):
        store.key_batches.revoke(stale)
    assert store.keys.list() == keys
    assert store.keys.changes_since(0).revision == revision


def test_the_audit_trail(store: Store) -> None:
    """Records are found by key, action, actor and time, a page at a time, newest first."""
    one, two = _made(store, "one", "two")
    store.keys.update(one.id, {"name": "uno"}, by="console 192.0.2.7")
    store.keys.revoke(two.id, by="cli ada@host")
    every = store.audit.list()
    assert [(record.action, record.key_name) for record in every] == [
        (Action.KEY_REVOKE, "two"),
        (Action.KEY_UPDATE, "uno"),
        (Action.KEY_CREATE, "two"),
        (Action.KEY_CREATE, "one"),
    ]
    assert (every[1].before, every[1].after) == ({"name": "one"}, {"name": "uno"})
    trail = store.audit.list
    assert trail(key_id=one.id) == [every[1], every[3]]
    assert trail(action=Action.KEY_CREATE) == every[2:]
    assert trail(by="192.0.2") == [every[1]]
    assert trail(by="%") == trail(by="no such actor") == []
    assert trail(before_id=every[1].id, limit=1) == [every[2]]
    assert trail(since=every[1].at) == [one for one in every if one.at >= every[1].at]
    assert trail(until=every[3].at) == []


PLANS = [
    (order, is_descending, show_revoked, is_first)
    for order in SORTS
    if order != "used"
    for is_descending in (False, True)
    for show_revoked in (False, True)
    for is_first in (False, True)
]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "key", "0123"])
@pytest.mark.parametrize(("order", "is_descending", "show_revoked", "is_first"), PLANS)
def test_query_plans(
    new_database: str,
    store: Store,
    order: str,
    text: str,
    *,
    is_descending: bool,
    show_revoked: bool,
    is_first: bool,
) -> None:
    """A page of the list is read along an index: nothing is sorted, and what is before the page is
    not gone through."""
    wanted = KeyFilter(text, show_revoked)
    place = None if is_first else ("name", START, "key_1")[-2 if order == "created" else 0 :]
    query = page_query(wanted, order, place, is_descending=is_descending).limit(100)
    plan = plan_of(store, new_database, query)
    name = "ix_api_keys_" + {"name": "lower_name", "created": "unrevoked"}[order]
    name = "ix_api_keys_created" if show_revoked and order == "created" else name
    assert name in plan, plan
    assert "TEMP B-TREE" not in plan, plan
    assert "Sort" not in plan, plan
    if not is_first:
        assert "SEARCH" in plan or "Index Cond" in plan, plan


@pytest.mark.parametrize("show_revoked", [False, True])
def test_query_plans_of_commands(new_database: str, store: Store, *, show_revoked: bool) -> None:
    """A page of `policyd keys list` and of AdminService is read along an index."""
    for place in (None, (START, "key_1")):
        query = list_query(place, show_revoked=show_revoked).limit(100)
        plan = plan_of(store, new_database, query)
        assert "ix_api_keys_created" in plan or "ix_api_keys_unrevoked" in plan, plan
        assert "TEMP B-TREE" not in plan, plan
        assert "Sort" not in plan, plan
        assert place is None or "SEARCH" in plan or "Index Cond" in plan, plan


def plan_of(store: Store, url: str, query: sa.Select[Any]) -> str:
    """How the database reads what the query asks for. `store` has made its tables."""
    assert store.form().revision
    engine = open_engine(url)
    text = str(query.compile(engine, compile_kwargs={"literal_binds": True}))
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                rows = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + text)
                return "\n".join(str(row[3]) for row in rows)
            # Of few rows, PostgreSQL would read all, and sort them.
            for setting in ("enable_seqscan", "enable_sort", "enable_bitmapscan"):
                connection.exec_driver_sql(f"SET {setting} = off")
            rows = connection.exec_driver_sql("EXPLAIN " + text.replace("%", "%%"))
            return "\n".join(str(row[0]) for row in rows)
    finally:
        engine.dispose()
