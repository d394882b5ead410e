"""KeyFeed: a snapshot that is older than the table brings its followers to the table's state."""

from policyd.engine.settings import KeyChange, KeyChanges, KeySettings
from policyd.keys import key_table
from policyd.keys.key_table import KeyTable
from policyd.services.key_feed import KeyFeed, Part
from policyd.services.local_messages import State
from policyd.v1 import local_pb2 as pb


class Fed:
    """A table and its feed."""

    def __init__(self) -> None:
        self.table = KeyTable()
        self.feed = KeyFeed(self.table, lambda: "ab" * 16)

    async def apply(self, revision: int, epoch: str, *, everything: bool = False) -> State:
        """Bring the table to this state, as the database has it now."""
        changed = [KeyChange(bytes([revision]) * 32, KeySettings("key_" + "0" * 16))]
        changes = KeyChanges(revision, changed, everything=everything, epoch=epoch)
        await self.table.apply(changes, key_table.seconds())
        return State(revision, epoch)

    def next(self, has: State, told_at: float, in_force: State | None = None) -> Part:
        part = self.feed.next_part(has, told_at, in_force)
        assert part is not None
        return part


def put_back(part: Part) -> bool:
    message = part.message(0)
    assert message is not None
    return pb.WatchKeysResponse.FromString(message).snapshot.put_back


async def test_a_snapshot_that_is_older_than_the_table() -> None:
    """A snapshot that is being sent also serves another follower: changes lead from it to the
    table's state. The worker reports a restored database to followers only if the table's own state
    is lower."""
    fed = Fed()
    first = await fed.apply(5, "a", everything=True)
    sent = fed.feed.next_part(None, 0)
    assert sent is not None
    states = [await fed.apply(6, "b"), await fed.apply(7, "c")]
    told_at = key_table.seconds() - 1
    for other in (State(6, "x"), State(4, "x")):
        part = fed.next(other, told_at)
        assert part is sent
        assert (part.state, put_back(part)) == (first, False)
    for state, following in zip([first, *states], states, strict=False):
        assert fed.next(state, told_at).state == following
    lost = fed.next(State(7, "x"), told_at)
    assert (lost.state, put_back(lost)) == (State(7, "c"), True)


async def test_put_back_while_a_snapshot_is_kept_aside() -> None:
    """A follower that has kept aside a lower revision is judged by the revision that it has in
    force."""
    fed = Fed()
    aside = await fed.apply(5, "a", everything=True)
    await fed.apply(6, "z", everything=True)
    told_at = key_table.seconds() - 1
    assert not put_back(fed.next(aside, told_at))
    assert put_back(fed.next(aside, told_at, State(6, "x")))
    assert put_back(fed.next(aside, told_at, State(7, "x")))
    assert not put_back(fed.next(aside, told_at, State(4, "x")))
