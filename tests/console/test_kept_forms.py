"""Forms that were sent after their session had ended come back, filled in, after the sign-in."""

from urllib.parse import parse_qs, urlencode

import pytest

from policyd.console.security.kept_forms import MAX_FORM, without_secrets
from policyd.engine.settings import setting_of
from policyd.engine.states import Mode
from policyd.policies import TABLE
from tests.support.consoles import PASSWORD, Console, Page, Visitor

ORIGINAL = TABLE.original.name


async def _sign_in_again(console: Console, visitor: Visitor, asked: Page) -> Page:
    """Fill in the sign-in page that was shown in place of what a form was sent for."""
    assert asked.status == 401
    form = {"next": asked.field("next"), "kept": asked.field("kept").replace("&amp;", "&")}
    return await visitor.post("/sign-in", form | {"password": console.token})


async def test_settings_come_back(console: Console, admin: Visitor) -> None:
    """Settings that were sent too late are shown as they were typed, and saved once they are sent
    again."""
    key, _ = console.store.keys.create("app")
    page = await admin.get(f"/keys/{key.id}")
    console.store.administrator.end_sessions()
    typed = {"name": "typed & kept", f"mode.{ORIGINAL}": "audit", "accept": "user"}
    form = typed | {"etag": page.field("etag")}
    asked = await admin.post(f"/keys/{key.id}", form)
    assert "the form comes back" in asked.text
    assert console.store.keys.get(key.id) == key
    back = await _sign_in_again(console, admin, asked)
    assert "What you typed is back in the form" in back.text
    assert 'value="typed &amp; kept"' in back.text
    assert back.field("etag") == page.field("etag")
    assert 'value="audit" checked' in back.text
    assert console.store.keys.get(key.id) == key
    await admin.post(f"/keys/{key.id}", form)
    saved = console.store.keys.get(key.id)
    assert (saved.name, setting_of(saved.policies, ORIGINAL).mode) == ("typed & kept", Mode.AUDIT)


async def test_a_change_made_meanwhile(console: Console, admin: Visitor) -> None:
    """A form that comes back still tells of a change that was made in between."""
    key, _ = console.store.keys.create("app")
    page = await admin.get(f"/keys/{key.id}")
    console.store.administrator.end_sessions()
    form = {"name": "mine", "accept": "user", "etag": page.field("etag")}
    asked = await admin.post(f"/keys/{key.id}", form)
    console.store.keys.update(key.id, {"name": "theirs"})
    back = await _sign_in_again(console, admin, asked)
    assert 'value="mine"' in back.text
    assert (await admin.post(f"/keys/{key.id}", form)).status == 409


async def test_a_new_key_comes_back(console: Console, admin: Visitor) -> None:
    """A key is not made before its form is sent again; a wrong password loses nothing."""
    console.store.administrator.end_sessions()
    asked = await admin.post("/keys", {"name": "app", f"mode.{ORIGINAL}": "enforce"})
    wrong = {"next": asked.field("next"), "kept": asked.field("kept").replace("&amp;", "&")}
    again = await admin.post("/sign-in", wrong | {"password": "wrong"})
    back = await _sign_in_again(console, admin, again)
    assert "<h1>Create API key</h1>" in back.text
    assert 'value="app"' in back.text
    assert 'value="enforce" checked' in back.text
    assert console.store.keys.list() == []


async def test_a_tried_request_comes_back(console: Console, admin: Visitor) -> None:
    """A request comes back without the headers that may hold a secret."""
    console.store.administrator.end_sessions()
    headers = "X-Other: 1\r\nAuthorization: Bearer sk-SECRET\r\nx-api-key: SECRET"
    form = {"method": "POST", "path": "/v1/embeddings", "headers": headers, "body": '{"user": "a"}'}
    asked = await admin.post("/try", form)
    assert "SECRET" not in asked.text
    back = await _sign_in_again(console, admin, asked)
    assert "X-Other: 1" in back.text
    assert "{&#34;user&#34;: &#34;a&#34;}" in back.text
    assert 'value="/v1/embeddings"' in back.text
    assert "SECRET" not in back.text


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/account/password", {"current": PASSWORD, "password": "s3cret", "repeated": "s3cret"}),
        ("/keys/key_1/revoke", {"etag": "1"}),
        ("/keys", {"name": "x" * MAX_FORM}),
        ("/nothing", {"name": "app"}),
    ],
)
async def test_what_is_not_kept(
    console: Console, admin: Visitor, path: str, form: dict[str, str]
) -> None:
    """Passwords, revocations and long forms are not kept; the sign-in leads back to the page."""
    console.store.administrator.end_sessions()
    referer = f"{console.url}/keys/new?x=1"
    answer = await admin.post(path, form, follow=False, Referer=referer)
    assert (answer.status, answer.headers["Location"]) == (
        303,
        "/sign-in?next=%2Fkeys%2Fnew%3Fx%3D1",
    )


async def test_strangers_hold_nothing(console: Console, admin: Visitor) -> None:
    """A form is held in memory only after a sign-in, and for its own page."""
    kept = console.server._console.kept
    async with Visitor(console.url) as stranger:
        asked = await stranger.post("/keys", {"name": "<b>mine</b>"})
        assert "<b>" not in asked.text
        form = {"next": "/keys/new", "kept": "name=x", "password": "wrong"}
        await stranger.post("/sign-in", form)
    assert not kept._forms
    back = await _sign_in_again(console, admin, asked)
    (identifier,) = kept._forms
    assert "&lt;b&gt;mine" in back.text
    assert "mine" not in (await admin.get(f"/try?typed={identifier}")).text
    for _ in range(40):
        identifier = kept.keep("/try", "path=/x")
    assert len(kept._forms) < 40
    assert 'value="/x"' in (await admin.get(f"/try?typed={identifier}")).text


def test_secrets_are_left_out() -> None:
    """The console keeps no field that may hold a secret."""
    form = "name=a&password=b&current=c&secret=d&Token=e&headers=Cookie%3A+f%0AX-A%3A+g"
    assert parse_qs(without_secrets(form)) == {"name": ["a"], "headers": ["X-A: g"]}
    key = "up-" + "a1B2" * 12
    form = urlencode(
        {"path": f"/v1/{key}", "headers": f"X-Pass: f\nX-Auth: g\nX-A: {key}", "body": key}
    )
    assert parse_qs(without_secrets(form)) == {
        "path": ["/v1/***"],
        "headers": ["X-A: ***"],
        "body": ["***"],
    }
    assert without_secrets("&".join(f"f{n}=1" for n in range(2000))) == ""


async def test_fragments(console: Console, admin: Visitor) -> None:
    """A part of a page that is asked for too late leaves what is typed in the page alone."""
    key, _ = console.store.keys.create("app")
    console.store.administrator.end_sessions()
    part = await admin.post(f"/keys/{key.id}/simulation", {"name": "x"}, HX_Request="true")
    assert (part.status, "Your session has ended" in part.text) == (200, True)
    where = f"{console.url}/logs?user=a"
    polled = await admin.get("/logs/rows", HX_Request="true", HX_Current_URL=where)
    assert polled.headers["HX-Redirect"] == "/sign-in?next=%2Flogs%3Fuser%3Da"
