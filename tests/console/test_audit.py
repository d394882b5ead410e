"""Audit: what administrators did, as the console shows it."""

import html
from datetime import UTC, datetime, timedelta

import pytest

from policyd.console.view import labels
from policyd.console.view.changes import changes
from policyd.engine.states import Mode, Override
from policyd.keys.audit import Action, AuditRecord
from policyd.policies import TABLE
from tests.support.consoles import PASSWORD, Console, Visitor

HOSTILE = "<script>alert(1)</script>\u202e"


def test_every_action_has_a_label() -> None:
    """Every action that the trail knows has a label."""
    assert set(labels.ACTIONS) == set(Action)


async def test_what_is_shown(console: Console, admin: Visitor) -> None:
    """The page shows what was done, by which actor, before and after; the newest first."""
    key, secret = console.store.keys.create("app", by="cli ada@host")
    policies = TABLE.with_original(Mode.ENFORCE, Override.LOCKED)
    console.store.keys.update(key.id, {"policies": policies, "name": HOSTILE[:25]}, by=HOSTILE)
    text = (await admin.get("/audit")).text
    assert text.index("Key changed</bdi>") < text.index("Key created</bdi>")
    assert "cli ada@host" in text
    assert "Enforce, override: no request" in html.unescape(text)
    assert "<script>alert" not in text
    assert secret not in text


async def test_signing_in_and_out(console: Console, admin: Visitor) -> None:
    """Sign-ins, those that failed, the password and exports are in the trail, without a secret."""
    new = {"current": console.token, "password": PASSWORD, "repeated": PASSWORD}
    await admin.post("/account/password", new)
    await admin.get("/logs/export.csv?user=ada&other=unknown-words")
    async with Visitor(console.url) as other:
        await other.sign_in("a wrong password")
        await other.sign_in(PASSWORD)
        await other.post("/sign-out")
    found = [(one.action, one.by) for one in reversed(console.store.audit.list())]
    assert found == [
        (action, "console 127.0.0.1")
        for action in (
            Action.SIGN_IN,
            Action.PASSWORD_SET,
            Action.LOG_EXPORT,
            Action.SIGN_IN_FAILED,
            Action.SIGN_IN,
            Action.SIGN_OUT,
        )
    ]
    text = (await admin.get("/audit")).text
    for told in ("Sign-in failed", "Password set", "Log exported", "user=ada"):
        assert told in text
    for secret in (PASSWORD, console.token, "a wrong password", "unknown-words"):
        assert secret not in text


async def test_filters(console: Console, admin: Visitor) -> None:
    """Each filter narrows the log down, and several do so together."""
    one, _ = console.store.keys.create("first key", by="cli ada@host")
    console.store.keys.create("second key", by="admin api 192.0.2.7")
    for url, shown, hidden in (
        ("action=key.create", "Key created</bdi>", "Signed in</bdi>"),
        (f"key={one.id}", ">first key</bdi></a>", ">second key</bdi></a>"),
        ("by=192.0.2", ">second key</bdi></a>", ">first key</bdi></a>"),
        ("until=2001-01-01T00:00", "Nothing is recorded here that matches", "Signed in</bdi>"),
        (f"since={datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M}", "Nothing", "created</b"),
    ):
        text = (await admin.get(f"/audit?{url}")).text
        table = text.partition("<tbody>")[2]
        assert shown in table, url
        assert hidden not in table, url
    for number in range(55):
        console.store.keys.update(one.id, {"name": f"name {number}"}, by="cli ada@host")
    page = await admin.get("/audit?by=cli+ada%40host")
    link = html.unescape(page.text.partition('href="/audit?by=')[2].partition('"')[0])
    older = await admin.get(f"/audit?by={link}")
    assert "Key created" in older.text.partition("<tbody>")[2]
    assert "Newest" in older.text


@pytest.mark.parametrize(
    "query",
    ["action=nonsense", "key=%00", "by=" + "x" * 300, "since=yesterday", "until=9999-99-99T00:00"],
)
async def test_filters_that_are_not_valid(admin: Visitor, query: str) -> None:
    """A filter that is not valid is named beside its field, and nothing is shown as its result."""
    page = await admin.get(f"/audit?{query}")
    assert page.status == 400
    assert f'id="e-{query.partition("=")[0]}"' in page.text
    assert "Signed in</bdi>" not in page.text


async def test_odd_pages(admin: Visitor) -> None:
    """A number of a page that is none is taken as the first page."""
    for before in ("x", "-1", "9" * 30, "%00"):
        assert "Signed in" in (await admin.get(f"/audit?before={before}")).text


def test_records_of_a_newer_version() -> None:
    """Fields and values that this version does not know are shown as they are."""
    at = datetime(2026, 11, 26, tzinfo=UTC)
    odd = {"policies": {"newer": {"mode": "quarantine", "value": "5"}, "gone": None}, "budget": 5}
    record = AuditRecord(1, at, "", "key.freeze", "key_1", "app", {"policies": None}, odd, 7)
    assert changes(record) == [("newer", labels.UNKNOWN, "5"), ("Budget", labels.UNKNOWN, "5")]
