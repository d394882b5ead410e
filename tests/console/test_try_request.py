"""Try a request: the console's page over the same decision as `policyd explain`."""

import html
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from policyd.console.view.typed_request import MAX_BODY, MAX_HEADERS
from policyd.engine.settings import Setting
from policyd.engine.states import Mode
from policyd.policies import TABLE
from policyd.store import LogFilter
from tests.support.commands import invoke
from tests.support.consoles import Console, Visitor, running, settings

WITHOUT_USER = json.dumps({"model": "gpt-4o-mini", "messages": []})
WITH_USER = json.dumps({"model": "gpt-4o-mini", "messages": [], "user": "alice"})


def _form(key_id: str, body: str = WITHOUT_USER, **changes: str) -> dict[str, str]:
    usual = {"method": "POST", "path": "/v1/chat/completions", "headers": "", "body": body}
    return usual | {"key": key_id} | changes


def _text(page: str) -> str:
    return html.unescape(page)


async def test_a_denial(console: Console, admin: Visitor) -> None:
    """The page shows the verdict, the reason, and the denial that `policyd explain` gives, to the
    byte."""
    key, secret = console.store.keys.create("app", TABLE.with_original(Mode.ENFORCE))
    page = await admin.post("/try", _form(key.id))
    assert page.status == 200
    command = ("explain", "--key", secret, "--method", "POST", "--path", "/v1/chat/completions")
    database = ("--database-url", console.settings.database_url, "--json")
    given = invoke("policyd", *command, "--body", "-", *database, stdin=WITHOUT_USER.encode())
    explained = json.loads(given.stdout)
    text = _text(page.text)
    assert explained["summary"] in text
    assert f"HTTP/1.1 {explained['denial']['http_status']}" in text
    for name, value in explained["denial"]["headers"].items():
        assert f"\n{name}: {value}" in text
    assert explained["denial"]["body"] in text
    assert secret not in text


async def test_nothing_is_logged(console: Console, admin: Visitor) -> None:
    """A request that is tried is no decision in the log, and its key was not used."""
    key, _ = console.store.keys.create("app", TABLE.with_original(Mode.ENFORCE))
    await admin.post("/try", _form(key.id))
    assert console.store.log.page(LogFilter()) == []
    assert console.store.log.status().decisions == 0


async def test_every_policy(console: Console, admin: Visitor) -> None:
    """Each policy has its verdict and its reason, and those that are not set are named."""
    audited = [("max_tokens", Setting(Mode.AUDIT, "5"))]
    key, _ = console.store.keys.create("app", (*TABLE.with_original(Mode.OFF), *audited))
    page = await admin.post("/try", _form(key.id, json.dumps({"max_tokens": 9, "user": "ada"})))
    text = _text(page.text)
    assert "Would be blocked" in text
    assert "Violated" in text
    titles = {policy.title for policy in TABLE.policies}
    unset = text.partition("Not set, by the key or the server: ")[2].partition(".</p>")[0]
    assert len(unset.split(", ")) == len(titles) - 2
    assert "goes upstream untouched" in text


async def test_the_override_header(console: Console, admin: Visitor) -> None:
    """Headers count as a client's would."""
    key, _ = console.store.keys.create("app", TABLE.with_original(Mode.OFF))
    off = await admin.post("/try", _form(key.id))
    assert "goes upstream untouched" in off.text
    headers = f"X-Other: 1\r\n\r\n{TABLE.original.header}: true"
    page = await admin.post("/try", _form(key.id, headers=headers))
    assert "HTTP/1.1 422" in page.text
    assert "header" in page.text


@pytest.mark.parametrize(
    ("callers", "told"), [(("grpc",), "goes upstream untouched"), (("http",), "HTTP/1.1 422")]
)
async def test_a_header_that_names_the_end_user(
    tmp_path: Path, callers: tuple[str, ...], told: str
) -> None:
    """A header counts as the end user where the gateway is trusted with it."""
    chosen = settings(tmp_path, end_user_headers=("x-user",), end_user_callers=callers)
    async with running(chosen) as console, Visitor(console.url) as admin:
        await admin.sign_in(console.token)
        policies = TABLE.with_original(Mode.ENFORCE)
        key, _ = console.store.keys.create("app", policies, ("header:x-user",))
        page = await admin.post("/try", _form(key.id, headers="X-User: ada"))
        assert told in page.text


async def test_keys_that_are_not_in_force(console: Console, admin: Visitor) -> None:
    """No key, a revoked one, and one that has expired give the denial that a client gets with
    them."""
    key, _ = console.store.keys.create("app")
    console.store.keys.revoke(key.id)
    past = datetime.now(UTC) - timedelta(minutes=1)
    expired, _ = console.store.keys.create("expired", expires_at=past)
    for key_id, told in (
        ("", "No API key was given"),
        (key.id, "is not valid here"),
        (expired.id, "is not valid here"),
    ):
        page = await admin.post("/try", _form(key_id, WITH_USER))
        assert "HTTP/1.1 403" in page.text
        assert told in page.text
    gone = await admin.post("/try", _form("key_0", WITH_USER))
    assert gone.status == 422
    assert "no such API key any more" in gone.text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "GET OUT"}, "Give a method"),
        ({"method": ""}, "Give a method"),
        ({"path": "v1/chat"}, "begins with a slash"),
        ({"path": "http://["}, "begins with a slash"),
        ({"path": "/" + "a" * 5000}, "at most 4000"),
        ({"headers": "no colon"}, "is not a header"),
        ({"headers": "a b: c"}, "is not a header"),
        (
            {"headers": "\n".join(f"x-{n}: 1" for n in range(MAX_HEADERS + 1))},
            "at most 100 headers",
        ),
        ({"headers": "X-UsagePanda-API-Key: up-1"}, "Choose the key by its name"),
        ({"body": "x" * (MAX_BODY + 1)}, "up to 256 KiB"),
    ],
)
async def test_what_cannot_be_tried(
    console: Console, admin: Visitor, changes: dict[str, str], told: str
) -> None:
    """The page says beside the field what is wrong, and keeps what was typed."""
    key, _ = console.store.keys.create("app")
    page = await admin.post("/try", _form(key.id, **changes))
    assert page.status == 422
    assert told in _text(page.text)
    assert 'id="verdict"' not in page.text
    assert f'value="{key.id}" selected' in page.text
    ((name, value),) = changes.items()
    assert f'id="e-{name}"' in page.text
    assert value in _text(page.text)


async def test_a_form_beyond_the_bound(admin: Visitor) -> None:
    """The console does not read a form that is far beyond the bound."""
    form = io.BytesIO(b"body=" + b"x" * 2**20)
    page = await admin.post("/try", form, Content_Type="application/x-www-form-urlencoded")
    assert page.status == 413


@pytest.mark.parametrize("body", ["", "[]", "{", "\0", "[" * 600 + "]" * 600])
async def test_bodies_that_cannot_be_read(console: Console, admin: Visitor, body: str) -> None:
    """A body that cannot be read is denied as the gateway would deny it."""
    key, _ = console.store.keys.create("app", TABLE.with_original(Mode.ENFORCE))
    page = await admin.post("/try", _form(key.id, body))
    assert page.status == 200
    assert "HTTP/1.1 400" in page.text


async def test_a_copied_url(console: Console, admin: Visitor) -> None:
    """A path that was copied with its host is taken without it."""
    key, _ = console.store.keys.create("app", TABLE.with_original(Mode.ENFORCE))
    url = "https://api.openai.com/v1/chat/completions?x=1"
    page = await admin.post("/try", _form(key.id, path=url))
    assert "HTTP/1.1 422" in page.text


async def test_a_link_that_fills_the_form(console: Console, admin: Visitor) -> None:
    """A link may choose the key, the method and the path."""
    key, _ = console.store.keys.create("app")
    page = await admin.get(f"/try?key={key.id}&path=/v1/embeddings")
    assert f'value="{key.id}" selected' in page.text
    assert 'value="/v1/embeddings"' in page.text


async def test_another_site(console: Console, admin: Visitor) -> None:
    """A page of another site cannot send the form."""
    page = await admin.post("/try", _form(""), Origin="https://evil.example")
    assert page.status == 403
