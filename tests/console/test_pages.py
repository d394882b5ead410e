"""The console's pages, as a browser without JavaScript gets them: what holds for all of them."""

from email.message import Message
from pathlib import Path
from urllib.parse import quote

import pytest

from policyd.console import ConsoleServer
from policyd.console.view import documentation
from policyd.console.view.render import HERE
from policyd.store import Store
from tests.support.consoles import (
    HOSTILE,
    SHOWN,
    Console,
    Visitor,
    prepare,
    running,
    settings,
    settings_form,
)
from tests.support.postgresql import PostgreSQL
from tests.support.records import denied, outcome, record, utc_now


@pytest.mark.parametrize(
    "path",
    [
        "/x",
        "/keys/key_0",
        "/keys/%00",
        "/keys/key_0/revoke",
        "/keys/key_0/simulation",
        "/keys/key_0/history",
        "/logs/x",
        "/logs/%ff%00",
        "/static/nothing",
        "/static/../app.py",
    ],
)
async def test_what_is_not_there(admin: Visitor, path: str) -> None:
    """A page that does not exist answers 404 with an explanation."""
    answer = await admin.get(path)
    assert answer.status == 404
    assert "Traceback" not in answer.text


async def test_hostile_strings(console: Console, admin: Visitor) -> None:
    """Hostile strings are shown, harmless and whole, on every page."""
    fields = ("end_user", "model", "user_agent", "organization", "request_id", "source_ip")
    one = denied(utc_now(), **dict.fromkeys((*fields, "path", "method", "trace_id"), HOSTILE))
    two = record(utc_now(), end_user=HOSTILE, user_agent=("A" * 255 + "\u202e") * 2)
    answered = outcome(two, openai_id=HOSTILE, model=HOSTILE, organization=HOSTILE)
    console.store.log.append([one, two, answered])
    for path in (f"/logs/{one.id}", f"/logs/{two.id}", "/logs", "/users", "/"):
        answer = await admin.get(path)
        assert answer.status == 200
        assert "<script>alert" not in answer.text
        assert not {"\x1b", "\x07", "\u202e", "\u2028"} & set(answer.text)
        if path not in ("/",):
            assert SHOWN in answer.text
    found = await admin.get("/logs?user=" + quote(HOSTILE))
    assert SHOWN in found.text


async def test_the_store_is_away(tmp_path: Path) -> None:
    """Without the store every page answers 503 with Retry-After, and none shows a traceback."""
    chosen = settings(tmp_path)
    prepare(chosen)
    away = Store(f"sqlite:///{tmp_path}/nowhere/policyd.db")
    async with (
        ConsoleServer(chosen, away) as server,
        Visitor(f"http://{server.address}") as visitor,
    ):
        for path in ("/", "/keys", "/logs", "/users", "/sign-in", "/first-password?code=x"):
            answer = await visitor.get(path)
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "5"
            assert "cannot reach the database" in answer.text
        assert (await visitor.post("/sign-in", {"password": "x"})).status == 503
    away.close()


async def test_on_postgresql(postgresql: PostgreSQL, tmp_path: Path) -> None:
    """Every page works on PostgreSQL too, hostile strings and odd filters included."""
    with postgresql.database() as url:
        chosen = settings(tmp_path, database_url=url)
        async with running(chosen) as console, Visitor(console.url) as admin:
            await admin.sign_in(console.token)
            key, _ = console.store.keys.create("app")
            one = denied(utc_now(), key_id=key.id, end_user=HOSTILE + "\0", trace_id="t-1")
            console.store.log.append([one, record(utc_now(), trace_id="t-1"), outcome(one)])
            for path in (
                *("/", "/keys", f"/keys/{key.id}", f"/keys/{key.id}/simulation", "/users"),
                *("/logs", "/logs?user=%00x&flag=invalid_override", f"/logs/{one.id}", "/account"),
                *("/users?period=today&sort=cost", "/logs/export.csv", "/logs/rows", "/refused"),
                *("/users?sort=latency", "/users?sort=errors", "/logs?find=%00", "/logs?find=t-1"),
            ):
                assert (await admin.get(path)).status == 200, path
            assert SHOWN in (await admin.get(f"/logs/{one.id}")).text
            form = settings_form("chat", str(key.revision))
            assert "Saved." in (await admin.post(f"/keys/{key.id}", form)).text
            for path in ("/keys/%00", "/logs/%00"):
                assert (await admin.get(path)).status == 404, path
            for path in ("/users?key=%00", "/logs?key=%00", "/logs?trace=%00x"):
                assert (await admin.get(path)).status == 400, path


async def test_the_documentation(admin: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page links to the documentation that the installed package names, if it names any."""
    message = Message()
    monkeypatch.setattr("importlib.metadata.metadata", lambda _: message)
    documentation.url.cache_clear()
    assert "the folder <code>docs</code>" in (await admin.get("/keys")).text
    message["Project-URL"] = "Documentation, https://docs.example/policyd"
    documentation.url.cache_clear()
    assert 'href="https://docs.example/policyd"' in (await admin.get("/keys")).text
    documentation.url.cache_clear()


def test_the_styles_are_whole() -> None:
    """Every block of the styles is closed: an open one would take all that follows with it."""
    styles = (HERE / "static" / "console.css").read_text()
    depth = 0
    for line in styles.splitlines():
        assert not (line.startswith("@media") and depth), line
        depth += line.count("{") - line.count("}")
    assert depth == 0
