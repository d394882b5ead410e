"""Settings in memory: they are those that were put in, and nothing goes through all at once."""

import asyncio
import gc
import math
from collections.abc import Collection, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.command import deadline
from policyd.engine.places import IDENTIFIERS, USER
from policyd.engine.settings import KeyChange, KeyChanges, KeySettings, Setting
from policyd.engine.states import Mode
from policyd.keys.changed_keys import ChangedKeys
from policyd.keys.key_table import PIECE, KeyTable
from policyd.keys.settings_by_digest import PARTS, SettingsByDigest
from policyd.policies import TABLE

DIGESTS = st.sampled_from([bytes([one]) * 32 for one in (0, 1, 2, 254, 255)] + [b"\1" * 31 + b"x"])
SETTINGS = st.builds(
    KeySettings,
    st.sampled_from(["key_0123456789abcdef", "key_é", ""]),
    st.sampled_from([(), TABLE.with_original(Mode.AUDIT), (("later", Setting(None, "1")),)]),
    st.sampled_from([IDENTIFIERS, (USER,)]),
    st.none() | st.floats(allow_nan=False),
)
CHANGES = st.lists(st.builds(KeyChange, DIGESTS, st.none() | SETTINGS))
PARTED = st.lists(CHANGES)


def applied(changes: list[KeyChange], to: dict[bytes, KeySettings]) -> dict[bytes, KeySettings]:
    after = dict(to)
    for change in changes:
        after.pop(change.digest, None)
        if change.settings is not None:
            after[change.digest] = change.settings
    return after


@given(PARTED)
def test_it_is_a_mapping(parted: list[list[KeyChange]]) -> None:
    """The table holds what was put in, and no copy changes with its original."""
    settings, wanted = SettingsByDigest(), dict[bytes, KeySettings]()
    copies: list[tuple[SettingsByDigest, dict[bytes, KeySettings]]] = []
    for changes in parted:
        for change in changes:
            if change.settings is None:
                settings.pop(change.digest, None)
            else:
                settings[change.digest] = change.settings
        wanted = applied(changes, wanted)
        copies.append((settings.copy(), wanted))
    for copy, was in copies:
        assert copy == was == dict(copy.pairs())
        assert len(copy) == len(was)
        for digest in was:
            assert copy.get(digest) == was[digest]


@given(PARTED)
def test_changes_in_parts_and_at_once(parted: list[list[KeyChange]]) -> None:
    """Whether changes come in parts or all at once, as objects or small, or as all that there is,
    the same settings are in force after them."""

    async def tables() -> list[KeyTable]:
        by_parts, small, everything = KeyTable(), KeyTable(), KeyTable()
        wanted: dict[bytes, KeySettings] = {}
        for number, changes in enumerate(parted, 1):
            # A digest is in one set of changes once: a database has one row of it.
            once = {change.digest: change for change in changes}
            await by_parts.apply(KeyChanges(number, tuple(once.values())), 0)
            collected = ChangedKeys()
            collected.add(once.values())
            assert len(collected) == len(once)
            assert set(collected) == set(once.values())
            await small.apply(KeyChanges(number, collected), 0)
            wanted = applied(changes, wanted)
        told = tuple(KeyChange(digest, settings) for digest, settings in wanted.items())
        await everything.apply(KeyChanges(len(parted), told, everything=True), 0)
        assert everything.copy() == wanted
        return [by_parts, small, everything]

    first, *others = asyncio.run(tables())
    assert all(one.copy() == first.copy() for one in others)


class Counted(Collection[KeyChange]):
    """Changes of many keys, which note in which turn of the loop each was taken."""

    def __init__(self, count: int, mode: Mode) -> None:
        self.turns: list[int] = []
        self.turn = 0
        self._count = count
        self._settings = KeySettings("key_1", TABLE.with_original(mode))

    def __len__(self) -> int:
        return self._count

    def __contains__(self, _: object) -> bool:
        raise NotImplementedError

    def __iter__(self) -> Iterator[KeyChange]:
        for number in range(self._count):
            self.turns.append(self.turn)
            yield KeyChange(digest(number), self._settings)

    async def count(self) -> None:
        """Count turns of the loop, until cancelled."""
        while True:
            await asyncio.sleep(0)
            self.turn += 1


def digest(number: int) -> bytes:
    return bytes([number % PARTS]) + number.to_bytes(31, "big")


@pytest.mark.parametrize("everything", [False, True])
async def test_the_loop_runs_during_large_changes(*, everything: bool) -> None:
    """No turn of the event loop takes more than a piece of a large change, or changes more than a
    part of the table; decisions meanwhile see all of it, or nothing."""
    count = 20 * PIECE
    table = KeyTable()
    before = Counted(count, Mode.OFF)
    await table.apply(KeyChanges(1, before, everything=True), 0)
    changes = Counted(count, Mode.ENFORCE)
    counting = asyncio.create_task(changes.count())
    applying = asyncio.create_task(table.apply(KeyChanges(2, changes, everything), 0))
    while not applying.done():
        states = {
            (table.revision, found and found.policies)
            for found in (table.settings(digest(one)) for one in (0, count // 2, count - 1))
        }
        assert len(states) == 1
        assert states <= {
            (1, TABLE.with_original(Mode.OFF)),
            (2, TABLE.with_original(Mode.ENFORCE)),
        }
        await asyncio.sleep(0)
    await applying
    counting.cancel()
    assert max(map(changes.turns.count, set(changes.turns))) <= PIECE
    # Taking them piece by piece, and giving the memory of what they replace back part by part.
    assert changes.turn >= count / PIECE + PARTS * (1 if everything else 2)


def test_a_collection_goes_through_no_keys() -> None:
    """The garbage collector has as much to look at with many keys as with few."""
    settings = SettingsByDigest()
    shared = settings.number(TABLE.with_original(Mode.AUDIT), IDENTIFIERS)

    def tracked() -> int:
        gc.collect()
        return len(gc.get_objects())

    few = tracked()
    for number in range(5000):
        settings.put(digest(number), f"key_{number}", shared, None if number % 2 else 1e9)
    assert tracked() - few < PARTS


@pytest.mark.slow
async def test_settings_that_change_all_the_time() -> None:
    """Settings that no key has any more are forgotten."""
    table = KeyTable()
    await table.apply(KeyChanges(1, (), everything=True), 0)
    for revision in range(2, 40):
        changed = tuple(
            KeyChange(
                digest(one), KeySettings("key_1", (("x", Setting(None, f"{revision}-{one}")),))
            )
            for one in range(PIECE)
        )
        await table.apply(KeyChanges(revision, changed), 0)
    assert len(table.copy()._kinds) <= 2 * PIECE + 4096 + PIECE
    assert set(table.copy()) == {digest(one) for one in range(PIECE)}


def test_a_deadline_that_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece of an answer begins the deadlines anew; silence ends them."""
    now = 0.0
    monkeypatch.setattr("policyd.command.deadline.time.monotonic", lambda: now)
    with deadline.within(10), deadline.within(5) as inner:
        for at in (4.0, 8.0, 12.0):
            now = at
            assert not deadline.is_over()
            deadline.renew()
            assert (deadline.remaining(), inner.age()) == (5, 0)
        now = 17.0
        assert deadline.is_over()
    assert deadline.remaining() == math.inf
