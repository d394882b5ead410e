"""End users that are searched, and those that are odd, on every database."""

from datetime import timedelta

from policyd.store import Store
from tests.support.records import START, record


def _names(store: Store, text: str, key_id: str = "") -> list[str]:
    found = store.statistics.users(START, START, text=text, key_id=key_id, sort="user")
    return [name for name, _ in found]


def test_searching(store: Store) -> None:
    """An end user is found by a part of it, in any letter case; the text is taken as it is."""
    store.log.append(
        [record(end_user=name) for name in ("Ada", "adam", "100%_\\", "grace")]
        + [record(end_user="ada of another key", key_id="key_2")]
    )
    for text, wanted in (
        ("ADA", ["Ada", "ada of another key", "adam"]),
        ("%", ["100%_\\"]),
        ("_", ["100%_\\"]),
        ("\\", ["100%_\\"]),
        ("unknown", []),
        ("\0", []),
    ):
        assert sorted(_names(store, text), key=str.lower) == sorted(wanted, key=str.lower), text
    assert _names(store, "ada", "key_2") == ["ada of another key"]


def test_addresses(store: Store) -> None:
    """Values that look like e-mail addresses are counted, by value and key, within the days asked
    for."""
    rows = [("a@example.com", "key_1")] * 3 + [("b@corp.example", "key_2")] * 2
    plain = ["ada", "@home", "a@b", "a@.c", "@example.com", "", "a b"]
    store.log.append([record(end_user=user, key_id=key) for user, key in rows])
    store.log.append([record(end_user=user) for user in plain])
    store.log.append([record(START - timedelta(days=1), end_user="old@example.com")])
    emails = store.statistics.emails
    assert emails(START, START) == (
        5,
        [("a@example.com", "key_1", 3), ("b@corp.example", "key_2", 2)],
    )
    assert emails(START, START, limit=1) == (5, [("a@example.com", "key_1", 3)])
    assert emails(START, START, key_id="key_2") == (2, [("b@corp.example", "key_2", 2)])
    assert emails(START, START, key_id="key_9") == (0, [])
    assert emails(START - timedelta(days=1), START)[0] == 6
