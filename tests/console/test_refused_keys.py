"""The page of refused keys."""

from policyd.decision_log.refused_key import RefusedKey, RefusedKeyCount, RefusedKeyReason
from tests.support.consoles import (
    HOSTILE,
    SHOWN,
    Console,
    Visitor,
)
from tests.support.records import decision_id, denied, record, utc_now

SOURCES = ("192.0.2.1", "others", "")


async def test_refused_keys(console: Console, admin: Visitor) -> None:
    """Refused keys have their own number, sources and samples, and count as no policy's blocks."""
    at = utc_now()
    assert "None in this period" in (await admin.get("/refused")).text
    minute = int(at.timestamp()) // 60
    console.store.log.append(
        [RefusedKeyCount("a", n, minute, source, 1, 1200, 3) for n, source in enumerate(SOURCES)]
    )
    assert "3,612 requests came without a valid API key" in (await admin.get("/")).text
    one = RefusedKey(
        decision_id(at), RefusedKeyReason.UNKNOWN, "192.0.2.1", "POST", HOSTILE, HOSTILE
    )
    console.store.log.append([record(at), one])
    text = (await admin.get("/")).text
    assert 'id="figure-refused">3,612</a>' in text
    assert 'id="figure-denied"' not in text
    assert 'id="figure-requests">1</a>' in text
    for period in ("", "24h", "7d", "30d", "90d", "nonsense"):
        text = (await admin.get(f"/refused?period={period}")).text
        assert ">3,612<" in text
        assert text.count(SHOWN) == 2
        assert all(shown in text for shown in ("192.0.2.1", "All other addr", "Address not known"))
    assert "counted apart" in (await admin.get("/logs")).text
    found = await admin.get(f"/logs?find={one.id}")
    assert f"/refused#r-{one.id}" in found.text


async def test_refused_keys_of_an_older_policyd(console: Console, admin: Visitor) -> None:
    """Refused keys of an older policyd stay in the log under a name of their own."""
    refused = denied(utc_now(), key_id="", mode=None, source=None, in_scope=False, status=403)
    console.store.log.append([refused])
    for path in ("/logs", f"/logs/{refused.id}"):
        text = (await admin.get(path)).text
        assert "Key refused" in text
        assert 'v3">Blocked<' not in text
    assert "No decision matches" in (await admin.get("/logs?decision=denied")).text
