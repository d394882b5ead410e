"""Sessions of the console end on the server, whatever copies of a cookie there are."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from policyd.console.security.sessions import LIFETIME, Sessions
from policyd.store import Store, administrator
from tests.support.consoles import PASSWORD, Console, Page, Visitor, running, settings
from tests.support.processes import Policyd


def cookies(page: Page) -> str:
    """All cookies that a response sets, as a request carries them."""
    lines = page.headers.getall("Set-Cookie")  # type: ignore[attr-defined]  # of a multidict
    return "; ".join(line.partition(";")[0] for line in lines)


async def is_good(url: str, copied: str) -> bool:
    """Whether a copy of the cookies opens a page."""
    async with Visitor(url) as thief:
        answer = await thief.get("/keys", follow=False, Cookie=copied)
        assert answer.status in (200, 303)
        return answer.status == 200


async def test_a_cookie_that_was_copied(console: Console) -> None:
    """A copied cookie ends with the session that it was copied from, and with no other one."""
    async with Visitor(console.url) as visitor, Visitor(console.url) as other:
        copied = cookies(await visitor.sign_in(console.token))
        kept = cookies(await other.sign_in(console.token))
        assert await is_good(console.url, copied)
        await visitor.post("/sign-out")
        assert not await is_good(console.url, copied)
        assert await is_good(console.url, kept)
        # It stays ended with a new session of the same browser, which a newer one ends.
        again = cookies(await visitor.sign_in(console.token))
        assert not await is_good(console.url, copied)
        assert await is_good(console.url, again)
        newer = cookies(await visitor.sign_in(console.token))
        assert not await is_good(console.url, again)
        assert await is_good(console.url, newer)
        async with Visitor(console.url) as thief:
            form = await thief.get("/sign-in", Cookie=copied)
            assert "<h1>Sign in</h1>" in form.text


async def test_a_copy_and_a_new_password(console: Console) -> None:
    """A change of the password ends all copies of all sessions but the one that it begins."""
    async with Visitor(console.url) as visitor, Visitor(console.url) as other:
        copies = [cookies(await one.sign_in(console.token)) for one in (visitor, other)]
        new = {"password": PASSWORD, "repeated": PASSWORD, "current": console.token}
        done = await visitor.post("/account/password", new, follow=False)
        assert done.status == 303
        assert [await is_good(console.url, one) for one in copies] == [False, False]
        assert await is_good(console.url, cookies(done))


@pytest.mark.slow
async def test_two_consoles_and_a_restart(tmp_path: Path, start: Callable[..., Any]) -> None:
    """A session that one process has ended is ended for another on the same database, at once and
    after a restart.
    """
    flag = ("--console", "127.0.0.1:0")
    one = start(Policyd, tmp_path, *flag)
    two = start(Policyd, tmp_path, *flag, "--spool", str(tmp_path / "another-spool"))
    token = (tmp_path / "admin-token").read_text().strip()
    async with Visitor(one.console) as visitor:
        copied = cookies(await visitor.sign_in(token))
        assert await is_good(two.console, copied)
        await visitor.post("/sign-out")
    assert not await is_good(one.console, copied)
    assert not await is_good(two.console, copied)
    assert await asyncio.to_thread(one.stop) == 0
    assert await asyncio.to_thread(two.stop) == 0
    again = start(Policyd, tmp_path, *flag)
    assert not await is_good(again.console, copied)
    async with Visitor(again.console) as visitor:
        assert await is_good(again.console, cookies(await visitor.sign_in(token)))


async def test_a_session_of_an_earlier_version(console: Console) -> None:
    """A session of an earlier version has no ID by which it could be ended, so it is ignored."""
    sessions: Sessions = console.server._console.sessions
    epoch = console.store.administrator.get().epoch
    for value in ("administrator", ["x"], "", "0" * 31, "G" * 32):
        cookie = sessions._signer("session", epoch).dumps(value)
        assert not await is_good(console.url, f"{sessions.cookie}={cookie}")


async def test_a_device_is_no_session(console: Console) -> None:
    """A device's cookie opens no page, and a session's identifies no device."""
    async with Visitor(console.url) as visitor:
        names = dict(
            one.split("=", 1) for one in cookies(await visitor.sign_in(console.token)).split("; ")
        )
    session, device = names
    assert "device" in device
    assert await is_good(console.url, f"{session}={names[session]}")
    assert not await is_good(console.url, f"{session}={names[device]}")


async def test_two_consoles_on_one_host(tmp_path: Path) -> None:
    """A browser that is signed in to two consoles on one host stays signed in to both, as their
    cookies have names of their own."""
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    async with (
        running(settings(folders[0])) as one,
        running(settings(folders[1])) as two,
        Visitor(one.url) as visitor,
    ):
        assert (await visitor.sign_in(one.token)).status == 303
        visitor.url = two.url
        assert (await visitor.sign_in(two.token)).status == 303
        for url in (one.url, two.url):
            visitor.url = url
            assert (await visitor.get("/keys", follow=False)).status == 200
        await visitor.post("/sign-out")
        visitor.url = one.url
        assert (await visitor.get("/keys", follow=False)).status == 200


def test_sessions_that_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended sessions are kept while their cookie would be valid, up to a bound.

    One beyond it ends all sessions.
    """
    monkeypatch.setattr(administrator, "MAX_ENDED", 3)
    store = Store(f"sqlite:///{tmp_path}/policyd.db")
    store.migrate()
    known = store.administrator
    epoch = known.get().epoch
    known.end_session("old", timedelta(seconds=-1))
    assert known.has_ended("old")
    for number in range(3):
        known.end_session(f"{number}", timedelta(seconds=LIFETIME))
        known.end_session(f"{number}", timedelta(seconds=LIFETIME))
    assert not known.has_ended("old")
    assert known.has_ended("0")
    assert known.get().epoch == epoch
    known.end_session("one more", timedelta(seconds=LIFETIME))
    assert known.get().epoch == epoch + 1
    with store._engine.connect() as connection:
        count = sa.select(sa.func.count()).select_from(administrator._ended)
        assert connection.execute(count).scalar_one() == 0
    store.close()
