"""The page of one decision."""

from typing import Any

import pytest

from policyd.decision_log.record import Ending, Verdict
from policyd.engine.decision import INVALID_OVERRIDE
from policyd.engine.states import Ignored, Mode, Source, UserState
from policyd.policies import TABLE
from tests.support.consoles import (
    Console,
    Visitor,
)
from tests.support.records import denied, outcome, record, utc_now

ORIGINAL = TABLE.original
FLAG_SETS = (ORIGINAL.flag, INVALID_OVERRIDE, f"{ORIGINAL.flag},{INVALID_OVERRIDE}")


async def test_log_details(console: Console, admin: Visitor) -> None:
    """Log Details shows every field, the explanation, and the other requests of the trace."""
    key, _ = console.store.keys.create("Support chat")
    told: dict[str, object] = {
        "key_id": key.id,
        "trace_id": "t-1",
        "source_ip": "10.1.2.3",
        "user_agent": "OpenAI/Python 1.40",
        "request_id": "r-77",
        "method": "POST",
        "path": "/v1/chat/completions",
    }
    one = record(utc_now(), **told)
    other = denied(utc_now(), trace_id="t-1", model="other-model")
    answered = outcome(
        one,
        openai_id="chatcmpl-9",
        organization="org-acme",
        model="gpt-4o-mini-2024",
        first_byte_us=350_000,
        duration_us=2_100_000,
        cached_tokens=3,
    )
    console.store.log.append([one, other, answered])
    text = (await admin.get(f"/logs/{one.id}")).text
    for shown in (
        *("Support chat", "t-1", "10.1.2.3", "OpenAI/Python 1.40", "r-77", "ada", "gpt-4o-mini"),
        *("chat_completion", "/v1/chat/completions", "chatcmpl-9", "org-acme", "gpt-4o-mini-2024"),
        *("350 ms", "2.1 s", "$0.000004500", "Complete", "Allowed: the field user names", one.id),
        *(f'href="/logs/{other.id}"', "other-model", one.time.strftime("%Y-%m-%d %H:%M:%S")),
    ):
        assert shown in text, shown
    blocked = (await admin.get(f"/logs/{other.id}")).text
    for shown in ("Denied by policyd", "422", "policy_enforce_user_ids", "It was blocked"):
        assert shown in blocked


MEMBERS: list[dict[str, Any]] = [
    *({"source": one} for one in Source),
    *({"ignored": one} for one in Ignored),
    *({"mode": one} for one in Mode),
    *({"user_state": one, "end_user": ""} for one in UserState),
    *({"verdict": one, "flags": flags} for one in Verdict for flags in FLAG_SETS),
    {"mode": None, "source": None},
]


@pytest.mark.slow
async def test_details_of_all_there_can_be(console: Console, admin: Visitor) -> None:
    """Log Details has words for every state of a decision and its outcome."""
    at = utc_now()
    ended = [record(at) for _ in Ending]
    entries = [record(at, **given) for given in MEMBERS]
    console.store.log.append(entries + ended)
    console.store.log.append(
        [outcome(one, ending=ending) for one, ending in zip(ended, Ending, strict=True)]
    )
    entries += ended
    for one in entries:
        assert (await admin.get(f"/logs/{one.id}")).status == 200, one
    for path in ("/logs", "/", "/users", "/logs/export.csv", "/logs/export.jsonl"):
        assert (await admin.get(path)).status == 200


async def test_a_user_that_is_not_named(console: Console, admin: Visitor) -> None:
    """The console distinguishes a user whose identifier is unknown from no user."""
    told, without = record(utc_now(), end_user=""), denied(utc_now())
    console.store.log.append([told, without])
    for one, words_ in ((told, "A user, not named"), (without, "No user")):
        text = (await admin.get(f"/logs/{one.id}")).text
        assert words_ in text
    text = (await admin.get("/logs")).text
    assert text.count(">Not named<") == text.count(">No user<") == 1
    assert "one not named (1)" in (await admin.get("/users")).text


async def test_what_is_told_of_end_users(console: Console, admin: Visitor) -> None:
    """The page shows flags, errors and latency of each end user, and sorts by them."""
    at = utc_now()
    entries = [record(at, end_user=name) for name in ("ada", "ada", "bob")]
    flagged = record(at, end_user="bob", flags="invalid_override")
    console.store.log.append([*entries, flagged])
    ends = [{"status": 500, "duration_us": 2_000_000}, {"duration_us": 1_000_000}, {}]
    console.store.log.append([outcome(one, **end) for one, end in zip(entries, ends, strict=True)])
    for sort, first in (("errors", "ada"), ("flagged", "bob"), ("latency", "ada")):
        text = (await admin.get(f"/users?sort={sort}")).text
        rows = text.partition('<caption class="off-screen">End users')[2]
        assert rows.partition("<bdi>")[2].startswith(first), sort
    assert ">1.5 s<" in text
    assert "<bdi>gpt-4o-mini</bdi>" in text
    assert "<code>key_1</code>" in text
    assert ">Blocked<" not in text
