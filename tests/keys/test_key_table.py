"""Which settings of a table of keys are in force at which moment, and the server's defaults."""

import pytest

from policyd.engine.settings import (
    KeyChange,
    KeyChanges,
    KeySettings,
    ServerDefaults,
    Setting,
    Settings,
)
from policyd.engine.states import Mode, Override
from policyd.keys.defaults import Defaults
from policyd.keys.stored_key_table import StoredKeyTable
from policyd.policies import TABLE

OLD, NEW = b"o" * 32, b"n" * 32
AUDIT = TABLE.with_original(Mode.AUDIT)
TOKENS = (("max_tokens", Setting(Mode.ENFORCE, "500")),)


class Told:
    """A store that tells what it is given."""

    def __init__(self, *changed: KeyChange, defaults: ServerDefaults | None = None) -> None:
        self.now = 1000.0
        self.changes = KeyChanges(1, changed, True, "a", defaults)
        self.table = StoredKeyTable(lambda *_: self.changes, clock=lambda: self.now)


async def test_a_secret_ends_by_the_clock() -> None:
    """A digest with an end is in force until then, whether or not the database answers."""
    ends = KeySettings("key_1", until=1010.0)
    told = Told(KeyChange(OLD, ends), KeyChange(NEW, KeySettings("key_1")))
    await told.table.refresh()
    for now, is_in_force in ((1000.0, True), (1009.9, True), (1010.0, False), (9e9, False)):
        told.now = now
        assert told.table.settings(OLD) == (ends if is_in_force else None)
        assert told.table.settings(NEW) == KeySettings("key_1")
    # A clock that was set back, or was corrected: the end is a moment, and nothing is forgotten.
    told.now = 1005.0
    assert told.table.settings(OLD) == ends


def test_a_snapshot_revives_no_secret() -> None:
    """A table that begins by a snapshot of years ago has none in force that has ended since."""
    table = StoredKeyTable(lambda *_: KeyChanges(1, ()))
    table.restore({OLD: KeySettings("key_1", until=1e9), NEW: KeySettings("key_1")}, 5, 1e8)
    assert table.settings(OLD) is None
    assert table.settings(NEW) == KeySettings("key_1")


@pytest.mark.parametrize(
    ("applied", "held"),
    [
        ((), TABLE.with_original(Mode.ENFORCE)),
        (AUDIT, AUDIT),
        (TOKENS, (*TABLE.with_original(Mode.ENFORCE), *TOKENS)),
        # Without a mode, the server's own holds.
        (
            ((TABLE.original.name, Setting(None, "", Override.LOCKED)),),
            TABLE.with_original(Mode.ENFORCE, Override.LOCKED),
        ),
    ],
)
async def test_defaults_above_the_servers_own(applied: Settings, held: Settings) -> None:
    """Applied defaults hold policy by policy; where they have none, the server's own holds."""
    told = Told()
    defaults = Defaults(told.table, TABLE.with_original(Mode.ENFORCE))
    assert defaults.policies == TABLE.with_original(Mode.ENFORCE)
    told.changes = KeyChanges(2, (), defaults=ServerDefaults(applied, revision=2))
    await told.table.refresh()
    assert defaults.policies == TABLE.in_order(held)
    told.changes = KeyChanges(3, ())
    await told.table.refresh()
    assert defaults.policies == TABLE.with_original(Mode.ENFORCE)


async def test_trusted_headers_of_the_defaults() -> None:
    """Headers that were applied take the place of the server's own, with their callers."""
    told = Told()

    def own(caller: str) -> frozenset[str]:
        return frozenset({"x-own"} if caller == "grpc" else ())

    defaults = Defaults(told.table, own_headers=own)
    callers = ("grpc", "http", "envoy")
    assert [set(defaults.trusted(one)) for one in callers] == [{"x-own"}, set(), set()]
    applied = ServerDefaults((), ("x-user",), ("http", "envoy"), 2)
    told.changes = KeyChanges(2, (), defaults=applied)
    await told.table.refresh()
    assert [set(defaults.trusted(one)) for one in callers] == [set(), {"x-user"}, {"x-user"}]
