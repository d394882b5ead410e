"""The console in a real browser, beside a real gateway, as the product's page describes it."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Dialog, Page, expect, sync_playwright

from policyd.decision_log.record import Record, Verdict
from policyd.decision_log.refused_key import RefusedKey, RefusedKeyCount, RefusedKeyReason
from policyd.engine.settings import Setting
from policyd.engine.states import Ignored, Mode, Source
from policyd.policies import TABLE
from policyd.store import Store
from tests.support.consoles import PASSWORD
from tests.support.processes import Policyd
from tests.support.records import decision_id, denied, outcome, record
from tests.support.requirements import program
from tests.support.stack import Background, Gateway, Upstream

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_WIDE = {"width": 1400, "height": 900}
_NARROW = {"width": 390, "height": 844}
_PATIENCE = 30_000
"""Milliseconds to wait for a change that the page makes by itself."""

_SIMULATION = f"#simulation-{TABLE.original.name}"

expect.set_options(timeout=_PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    path = program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        yield browser
        browser.close()


def is_an_error(line: str) -> bool:
    """Whether policyd logs an error there.

    On a busy machine a new database may take more than a second to make, in which policyd rightly
    logs that it cannot decide yet.
    """
    return "ERROR" in line and "no decision can be made" not in line


@pytest.fixture(scope="module")
def policyd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Policyd]:
    """policyd with its console."""
    server = Policyd(tmp_path_factory.mktemp("console"), "--console", "127.0.0.1:0")
    yield server
    assert server.stop() == 0, server.errors
    assert not [line for line in server.errors if "Traceback" in line or is_an_error(line)]


@pytest.fixture(scope="module")
def token(policyd: Policyd) -> str:
    """The administration token."""
    return (policyd.folder / "admin-token").read_text().strip()


@pytest.fixture(scope="module")
def gateway(policyd: Policyd) -> Iterator[Gateway]:
    """A gateway that asks policyd, before an upstream that answers."""
    with Background() as background, Upstream(background) as upstream:
        gateway = Gateway(policyd.grpc, upstream.url)
        yield gateway
        assert gateway.stop() == 0, gateway.errors


@pytest.fixture(scope="module")
def filled(policyd: Policyd) -> dict[str, str]:
    """The paths of every kind of page, with a log of all kinds of decisions, also hostile ones."""
    with _store(policyd) as store:
        return _fill(store)


HOSTILE_TEXT = "<img src=x onerror=alert(1)>\u202e\x1b" + "A" * 200


class Filled(NamedTuple):
    """What the pages are about."""

    at: datetime
    key_id: str
    strict_id: str
    """The key for which every policy is set."""
    blocked_id: str
    many_id: str
    """The decision that every policy flags."""
    odd_id: str
    """The decision on a request of hostile texts."""


def _fill(store: Store) -> dict[str, str]:
    """Fill the database. Returns the paths of all pages, by their names."""
    key, _ = store.keys.create("Support chat")
    every = [(one.name, Setting(Mode.AUDIT, one.kind.example)) for one in TABLE.policies]
    strict, _ = store.keys.create("Every policy", tuple(every), ("user", "header:x-user-id"))
    at = datetime.now(UTC) - timedelta(hours=2)
    _log_refused_keys(store, at)
    many = _of_every_policy(at, strict.id, every)
    blocked, odd = _log_decisions(store, at, key.id, many)
    return _paths(Filled(at, key.id, strict.id, blocked.id, many.id, odd.id))


def _log_refused_keys(store: Store, at: datetime) -> None:
    minute = int(at.timestamp()) // 60
    sources = [("192.0.2.1", 0), ("2001:db8:1:2::/64", 1), ("others", 2), ("", 3)]
    store.log.append([RefusedKeyCount("a", n, minute, one, 1, 1200, 3) for one, n in sources])
    texts = [HOSTILE_TEXT[:200]] * 4
    store.log.append([RefusedKey(decision_id(at), RefusedKeyReason.UNKNOWN, "192.0.2.1", *texts)])


def _of_every_policy(at: datetime, key_id: str, settings: list[tuple[str, Setting]]) -> Record:
    """A decision that every policy flags."""
    results = [
        [name, Mode.ENFORCE, one.value, Source.KEY, Ignored.NOT_IGNORED, f"{HOSTILE_TEXT} {name}"]
        for name, one in settings
    ]
    flags = ",".join(one.flag for one in TABLE.policies)
    return denied(at, key_id=key_id, flags=flags, results=json.dumps(results), token_limit=900)


def _log_decisions(store: Store, at: datetime, key_id: str, many: Record) -> tuple[Record, Record]:
    """Log `many` and others. Returns one that was blocked, and one of hostile texts."""
    would: dict[str, Any] = {"verdict": Verdict.WOULD_DENY, "status": 0}
    both = "policy_enforce_user_ids,invalid_override"
    odd: Any = record(
        at,
        end_user=HOSTILE_TEXT,
        user_agent=HOSTILE_TEXT * 2,
        model=HOSTILE_TEXT,
        trace_id="t-1",
    )
    blocked = denied(at, key_id=key_id, trace_id="t-1", sample=True, flags=both)
    store.log.append([record(at, key_id=key_id, end_user="undefined") for _ in range(3)])
    store.log.append([record(at, key_id=key_id, end_user="")])
    store.log.append([many])
    store.log.append(
        [odd, outcome(odd), blocked, denied(at, key_id=key_id, **would)]
        + [record(at + timedelta(minutes=n), end_user=f"user-{n}") for n in range(60)]
    )
    return blocked, odd


def _paths(of: Filled) -> dict[str, str]:
    return {
        "dashboard": "/?period=7d",
        "keys": "/keys",
        "new key": "/keys/new",
        "settings": f"/keys/{of.key_id}?saved",
        "use": f"/keys/{of.key_id}/use",
        "history": f"/keys/{of.key_id}/history",
        "rotate": f"/keys/{of.key_id}/rotate",
        "several keys": f"/keys/change?key={of.key_id}&key={of.strict_id}",
        "no keys": "/keys/change",
        "found keys": "/keys?find=chat&sort=used&revoked=1",
        "try": f"/try?key={of.strict_id}",
        "audit": "/audit",
        "odd filters": "/audit?since=x&by=console",
        "found users": "/users?find=user&sort=cost&order=up",
        "all policies": f"/keys/{of.strict_id}?saved",
        "revoke": f"/keys/{of.key_id}/revoke",
        "simulation": f"/keys/{of.key_id}/simulation?period=7d",
        "logs": "/logs",
        "filters": "/logs?user=user-1&decision=allowed",
        "blocked": "/logs?decision=denied",
        "of a policy": f"/logs?policy={TABLE.policies[0].name}",
        "of a flag": f"/logs?flag={TABLE.policies[-1].flag}",
        "nonsense": "/logs?since=nonsense&key=x",
        "details": f"/logs/{of.blocked_id}",
        "all flags": f"/logs/{of.many_id}",
        "hostile": f"/logs/{of.odd_id}",
        "users": "/users",
        "refused keys": "/refused",
        "search": "/logs?find=t-1",
        "other filters": "/logs?containing=user&answer=success&last=7d&nouser=",
        "a range": f"/?key={of.key_id}&since={of.at - timedelta(hours=5):%Y-%m-%dT%H:%M}",
        "account": "/account",
        "not found": "/nothing",
    }


@contextmanager
def _store(policyd: Policyd) -> Iterator[Store]:
    store = Store(policyd.database_url)
    yield store
    store.close()


@contextmanager
def _opened(browser: Browser, **options: Any) -> Iterator[Page]:
    """A page in a new browser context, which must log no error or warning."""
    complaints: list[str] = []
    with browser.new_context(**{"viewport": _WIDE} | options) as context:
        page = context.new_page()
        page.set_default_timeout(_PATIENCE)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: (
                complaints.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        yield page
    # An error status of a page is no complaint about the page.
    assert [one for one in complaints if "the server responded with a status of 4" not in one] == []


def _sign_in(page: Page, policyd: Policyd, token: str) -> None:
    page.goto(f"{policyd.console}/sign-in")
    page.get_by_label(re.compile("token")).fill(token)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()


def _ask(gateway: Gateway, key: str, **headers: str) -> tuple[int, str]:
    """The request of Usage Panda's Enforce User IDs page."""
    body = json.dumps({"model": "text-davinci-003", "prompt": "Hello there"}).encode()
    given = {"x-usagepanda-api-key": key, "Content-Type": "application/json"} | headers
    request = urllib.request.Request(f"{gateway.url}/v1/completions", body, given)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def _create_key(page: Page, policyd: Policyd, name: str) -> str:
    """Create a key in the console, and wait until it is in force."""
    page.get_by_role("link", name="API Keys").first.click()
    page.get_by_role("link", name=re.compile("Create (the first )?key")).first.click()
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Create key").click()
    key = page.locator("#key").inner_text()
    with _store(policyd) as store:
        policyd.reach(store.keys.changes_since(0).revision)
    return key


def _wait_until_in_force(page: Page) -> None:
    expect(page.get_by_text("the one worker has it")).to_be_visible()


def test_documented_steps(browser: Browser, policyd: Policyd, gateway: Gateway, token: str) -> None:
    """The four documented steps and the request give the flagged entry with its tooltip."""
    with _opened(browser) as page:
        _sign_in(page, policyd, token)
        key = _create_key(page, policyd, "The page's key")
        assert _ask(gateway, key)[0] == 200

        page.get_by_role("link", name="API Keys").first.click()
        page.get_by_role("link", name="Settings of The page's key").click()
        switch = page.get_by_role("group", name="Enforce User IDs")
        switch.scroll_into_view_if_needed()
        switch.get_by_role("radio", name="Enforce").check()
        page.get_by_role("button", name="Save").click()
        _wait_until_in_force(page)

        status, body = _ask(gateway, key)
        assert (status, json.loads(body)["error"]["type"]) == (422, "invalid_request")

        page.get_by_role("link", name="Logs").click()
        row = page.get_by_role("row").filter(has_text="The page's key").filter(has_text="Blocked")
        expect(row).to_have_count(1)
        tooltip = row.get_by_role("tooltip")
        expect(tooltip).to_be_hidden()
        row.get_by_role("button", name="Flag: Enforce User IDs").hover()
        expect(tooltip).to_be_visible()
        expect(tooltip).to_contain_text("This request carried no user. It was blocked")
        page.keyboard.press("Escape")
        expect(tooltip).to_be_hidden()

        row.get_by_role("link").first.click()
        expect(page.get_by_role("heading", name="Log Details")).to_be_visible()
        for shown in (
            "policy_enforce_user_ids",
            "text-davinci-003",
            "422",
            "the field user is absent",
        ):
            expect(page.get_by_role("main")).to_contain_text(shown)


def test_the_header(browser: Browser, policyd: Policyd, gateway: Gateway, token: str) -> None:
    """A request that asks to enforce by header is blocked and flagged, though the key is off."""
    with _opened(browser) as page:
        _sign_in(page, policyd, token)
        key = _create_key(page, policyd, "Header")
        assert _ask(gateway, key)[0] == 200
        assert _ask(gateway, key, **{"x-usagepanda-enforce-user-ids": "True"})[0] == 422
        page.goto(f"{policyd.console}/logs?decision=denied")
        row = page.get_by_role("row").filter(has_text="Header")
        expect(row).to_have_count(1)
        row.get_by_role("button", name="Flag: Enforce User IDs").focus()
        expect(row.get_by_role("tooltip")).to_be_visible()


def test_live(browser: Browser, policyd: Policyd, gateway: Gateway, token: str) -> None:
    """New decisions and outcomes appear in the log by themselves, unless it is paused."""
    with _opened(browser) as page:
        _sign_in(page, policyd, token)
        key = _create_key(page, policyd, "Live")
        page.get_by_role("link", name="Logs").click()
        rows = page.get_by_role("row").filter(has_text="Live")
        assert _ask(gateway, key)[0] == 200
        expect(rows).to_have_count(1)
        expect(rows.first).to_contain_text(re.compile(r"200\s+\S+ m?s\s+\d+\s+\$0\.\d+"))
        pause = page.get_by_role("button", name="Pause")
        pause.click()
        expect(page.get_by_text("Paused")).to_be_visible()
        assert _ask(gateway, key)[0] == 200
        with _opened(browser) as other:
            _sign_in(other, policyd, token)
            other.goto(f"{policyd.console}/logs")
            expect(other.get_by_role("row").filter(has_text="Live")).to_have_count(2)
        expect(rows).to_have_count(1)
        pause.click()
        expect(rows).to_have_count(2)


def test_before_you_switch_it_on(
    browser: Browser, policyd: Policyd, gateway: Gateway, token: str
) -> None:
    """The settings show what enforcing would have blocked, with the identifiers chosen so far."""
    with _opened(browser) as page:
        _sign_in(page, policyd, token)
        key = _create_key(page, policyd, "Careful")
        page.get_by_role("link", name="Settings", exact=True).click()
        expect(page.get_by_text("No requests with this key in this period")).to_be_visible()
        for _ in range(3):
            assert _ask(gateway, key)[0] == 200
        page.goto(f"{policyd.console}/logs")
        expect(page.get_by_role("row").filter(has_text="Careful")).to_have_count(3)
        page.get_by_role("link", name="API Keys").click()
        page.get_by_role("link", name="Settings of Careful").click()
        panel = page.locator(_SIMULATION)
        expect(panel).to_contain_text("3 of 3 requests would have been blocked")
        expect(panel).to_contain_text("text-davinci-003")
        panel.get_by_role("link", name="Last 7 days").click()
        expect(panel.get_by_role("link", name="Last 7 days")).to_have_attribute(
            "aria-current", "true"
        )
        expect(panel).to_contain_text("3 of 3 requests")


def test_panels(browser: Browser, policyd: Policyd, token: str) -> None:
    """A panel that is closed looks nothing up until it is opened; then its simulation follows what
    is typed.
    """
    policy = TABLE.by_name["max_tokens"]
    asked: list[str] = []
    with _opened(browser) as page:
        _sign_in(page, policyd, token)
        _create_key(page, policyd, "Panels")
        page.on("request", lambda one: asked.append(one.url.partition("?policy=")[2]))
        page.get_by_role("link", name="Settings", exact=True).click()
        expect(page.locator(f"{_SIMULATION} .tabs")).to_be_visible()
        assert [one for one in asked if one] == [TABLE.original.name]
        panel = page.locator(f"#policy-{policy.name}")
        value = panel.get_by_label("Value")
        expect(value).to_be_hidden()
        panel.locator("summary").click()
        expect(panel).to_contain_text("Give the policy a value first.")
        value.fill("many")
        value.press("Tab")
        expect(panel).to_contain_text("There is nothing to look for yet. A limit is")
        value.fill("500")
        value.press("Tab")
        expect(panel).to_contain_text("No requests with this key in this period")
        assert {one for one in asked if one} == {TABLE.original.name, policy.name}
        panel.get_by_role("radio", name="Audit").check()
        page.get_by_role("button", name="Save").click()
        _wait_until_in_force(page)
        expect(panel.locator("summary")).to_contain_text("Audit 500")
        expect(value).to_have_value("500")


def test_copying_a_key(browser: Browser, policyd: Policyd, token: str) -> None:
    """The button copies the key; reloading the page that showed it makes no second one."""
    allowed = ["clipboard-read", "clipboard-write"]
    with _opened(browser, permissions=allowed) as page:
        _sign_in(page, policyd, token)
        key = _create_key(page, policyd, "Copied")
        page.get_by_role("button", name="Copy key").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == key
        page.reload()
        expect(page.get_by_role("heading", name="Copied")).to_be_visible()
        page.get_by_role("link", name="API Keys").first.click()
        expect(page.get_by_role("row").filter(has_text="Copied")).to_have_count(1)


def test_the_first_start(browser: Browser, tmp_path: Path) -> None:
    """policyd prints a link that lets the administrator set the password, with several workers."""
    server = Policyd(tmp_path, "--console", "127.0.0.1:0", "--workers", "2")
    try:
        (link,) = re.findall(r"http://\S+/first-password\?code=\S+", "".join(server.output))
        with _opened(browser) as page:
            page.goto(link)
            page.get_by_label("New password").fill(PASSWORD)
            page.get_by_label("Repeat the password").fill(PASSWORD)
            page.get_by_role("button", name="Set password and sign in").click()
            expect(page.get_by_text("Create the first key")).to_be_visible()
            page.get_by_role("button", name="Sign out").click()
            page.goto(link)
            expect(page.get_by_role("alert")).to_contain_text("no longer good")
            page.get_by_label("Password or administration token").fill(PASSWORD)
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()
        message = "".join(server.errors)
        assert PASSWORD not in message
        assert link.partition("code=")[2] not in message
    finally:
        assert server.stop() == 0, server.errors


def test_a_session_that_ends(browser: Browser, policyd: Policyd, token: str) -> None:
    """A page that polls goes to the sign-in when its session has ended."""
    with _opened(browser) as page:
        _sign_in(page, policyd, token)
        page.goto(f"{policyd.console}/logs")
        with _store(policyd) as store:
            store.administrator.end_sessions()
        expect(page.get_by_role("button", name="Sign in")).to_be_visible()


def test_unsaved_changes(browser: Browser, policyd: Policyd, token: str) -> None:
    """Settings that are not saved are asked about before the page is left; saving and discarding
    ask nothing."""
    asked: list[str] = []
    with _opened(browser) as page:
        _sign_in(page, policyd, token)
        _create_key(page, policyd, "Unsaved")
        page.get_by_role("link", name="Settings", exact=True).click()

        def stay(dialog: Dialog) -> None:
            asked.append(dialog.type)
            dialog.dismiss()

        page.on("dialog", stay)
        name = page.get_by_label("Name", exact=True)
        name.fill("Renamed")
        expect(page.get_by_text("Unsaved changes")).to_be_visible()
        page.get_by_role("link", name="Dashboard").click(no_wait_after=True)
        page.wait_for_timeout(500)
        assert asked == ["beforeunload"]
        expect(name).to_have_value("Renamed")
        name.fill("Unsaved")
        expect(page.get_by_text("Unsaved changes")).to_be_hidden()
        name.fill("Renamed")
        page.get_by_role("link", name="Discard").click()
        expect(page.get_by_label("Name", exact=True)).to_have_value("Unsaved")
        page.get_by_label("Name", exact=True).fill("Renamed")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_text("Saved.")).to_be_visible()
        assert asked == ["beforeunload"]


def test_a_form_after_the_session(browser: Browser, policyd: Policyd, token: str) -> None:
    """What was typed before the session ended comes back after the sign-in, and is saved then."""
    with _opened(browser) as page:
        _sign_in(page, policyd, token)
        _create_key(page, policyd, "Interrupted")
        page.get_by_role("link", name="Settings", exact=True).click()
        page.get_by_label("Name", exact=True).fill("Typed before")
        with _store(policyd) as store:
            store.administrator.end_sessions()
        # The part of the page that simulates does not lead away from what is typed.
        page.get_by_role("group", name="Enforce User IDs").get_by_role(
            "radio", name="Audit"
        ).check()
        expect(page.locator(_SIMULATION)).to_contain_text("Your session has ended")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_text("Your session had ended")).to_be_visible()
        page.get_by_label(re.compile("token")).fill(token)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_label("Name", exact=True)).to_have_value("Typed before")
        expect(page.get_by_text("Unsaved changes")).to_be_visible()
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_text("Saved.")).to_be_visible()
        expect(page.get_by_role("heading", name="Typed before")).to_be_visible()


def test_ticking_keys(browser: Browser, policyd: Policyd, token: str) -> None:
    """One box ticks all keys of the page; the button waits for a tick."""
    with _opened(browser) as page:
        _sign_in(page, policyd, token)
        for name in ("Ticked one", "Ticked two"):
            _create_key(page, policyd, name)
        page.goto(f"{policyd.console}/keys?find=Ticked")
        button = page.get_by_role("button", name="Change the selected keys")
        expect(button).to_be_disabled()
        page.get_by_label("Select Ticked one").check()
        expect(button).to_be_enabled()
        page.get_by_label("Select all keys on this page").check()
        expect(page.get_by_label("Select Ticked two")).to_be_checked()
        button.click()
        expect(page.get_by_role("heading", name="2 keys")).to_be_visible()
        page.get_by_role("radio", name="Enforce").check()
        page.get_by_role("button", name="Review the change").click()
        page.get_by_role("button", name="Change 2 keys").click()
        expect(page.get_by_role("status")).to_contain_text("2 keys are changed")


# Many pages, each looked at as a whole.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("look", ["light", "dark", "narrow"])
def test_accessibility(
    browser: Browser, policyd: Policyd, token: str, filled: dict[str, str], look: str
) -> None:
    """axe finds nothing serious on any page, no page is wider than the screen, and no script from a
    request runs.
    """
    scheme = "dark" if look == "dark" else "light"
    size = _NARROW if look == "narrow" else _WIDE
    # Without motion, as a tooltip that fades in has too little contrast for a moment.
    looks = {"color_scheme": scheme, "viewport": size, "reduced_motion": "reduce"}
    with _opened(browser, **looks) as page:
        page.goto(f"{policyd.console}/sign-in")
        _check(page, "sign-in")
        _sign_in(page, policyd, token)
        for name, path in filled.items():
            page.goto(f"{policyd.console}{path}")
            if name == "settings":
                expect(page.locator(f"{_SIMULATION} .tabs")).to_be_visible()
            if name == "all policies":
                expect(page.locator("details.panel[open] .simulation p.muted")).to_have_count(
                    len(TABLE.policies)
                )
            _check(page, name)
        page.goto(f"{policyd.console}{filled['try']}")
        page.get_by_role("button", name="Try it").click()
        expect(page.locator("#verdict")).to_be_visible()
        _check(page, "tried")
        page.goto(f"{policyd.console}{filled['several keys']}")
        page.get_by_role("radio", name="Audit").check()
        page.get_by_role("button", name="Review the change").click()
        expect(page.get_by_role("button", name="Change 2 keys")).to_be_visible()
        _check(page, "summary")
        page.goto(f"{policyd.console}{filled['blocked']}")
        page.locator(".flag").first.focus()
        expect(page.get_by_role("tooltip").first).to_be_visible()
        _check(page, "tooltip")
        _create_key(page, policyd, f"For {look}")
        _check(page, "created key")


def _check(page: Page, name: str) -> None:
    found = Axe().run(page).response["violations"]
    serious = [
        (one["id"], [node["target"] for node in one["nodes"]][:5])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert not serious, (name, serious)
    width = page.viewport_size["width"] if page.viewport_size else 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width, name


def test_without_javascript(
    browser: Browser, policyd: Policyd, gateway: Gateway, token: str, filled: dict[str, str]
) -> None:
    """Without JavaScript everything works and tooltips show, but pages do not update themselves."""
    with _opened(browser, java_script_enabled=False) as page:
        _sign_in(page, policyd, token)
        key = _create_key(page, policyd, "Plain")
        expect(page.get_by_role("button", name="Copy key")).to_be_hidden()
        page.get_by_role("link", name="Settings", exact=True).click()
        switch = page.get_by_role("group", name="Enforce User IDs")
        switch.get_by_role("radio", name="Enforce").check()
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_text("Saved.")).to_be_visible()
        panel = page.locator(f"#policy-{TABLE.policies[0].name}")
        panel.locator("summary").click()
        panel.get_by_label("Value").fill(TABLE.policies[0].kind.example)
        panel.get_by_role("radio", name="Audit").check()
        page.get_by_role("button", name="Save").click()
        expect(panel.locator("summary")).to_contain_text("Audit")
        panel.get_by_role("link", name="See what enforcing would have blocked").click()
        expect(page.get_by_text("No requests with this key")).to_be_visible()
        assert _ask(gateway, key, **{"x-usagepanda-enforce-user-ids": "true"})[0] == 422
        page.get_by_role("link", name="Logs").click()
        row = page.get_by_role("row").filter(has_text="Plain")
        for _ in range(30):
            if row.count():
                break
            page.wait_for_timeout(1000)
            page.get_by_role("link", name="Check for new ones").click()
        row.get_by_role("button", name="Flag: Enforce User IDs").hover()
        expect(row.get_by_role("tooltip")).to_be_visible()
        page.get_by_text("Filters").click()
        page.get_by_role("textbox", name="User", exact=True).fill("user-7")
        page.get_by_role("button", name="Apply").click()
        expect(page.get_by_role("row")).to_have_count(2)
        page.goto(f"{policyd.console}{filled['keys']}")
        page.get_by_role("link", name="Settings of Plain").click()
        page.get_by_role("link", name="Revoke").click()
        page.get_by_role("button", name="Revoke this key").click()
        expect(page.get_by_role("status")).to_contain_text("is revoked")


def test_several_keys_without_javascript(browser: Browser, policyd: Policyd, token: str) -> None:
    """Without JavaScript several keys are changed at once, and a request is tried."""
    with _opened(browser, java_script_enabled=False) as page:
        _sign_in(page, policyd, token)
        _create_key(page, policyd, "Simple")
        page.goto(f"{policyd.console}/keys")
        page.get_by_label("Select Simple", exact=True).check()
        page.get_by_role("button", name="Change the selected keys").click()
        page.get_by_role("radio", name="Off").check()
        page.get_by_role("button", name="Review the change").click()
        page.get_by_role("button", name="Change 1 key").click()
        expect(page.get_by_role("status")).to_contain_text("1 key is changed")
        page.get_by_role("link", name="Try a request").click()
        page.get_by_label("API key").select_option(label="Simple")
        page.get_by_role("button", name="Try it").click()
        expect(page.locator("#verdict")).to_contain_text("Allowed")


def test_times_of_the_viewer(
    browser: Browser, policyd: Policyd, token: str, filled: dict[str, str]
) -> None:
    """Times are in the viewer's zone, with UTC on hover; what is typed there is sent in UTC."""
    with _opened(browser, timezone_id="Asia/Kolkata") as page:
        _sign_in(page, policyd, token)
        page.goto(f"{policyd.console}/logs?user=user-7")
        expect(page.locator("th.when")).to_have_text("Time (GMT+5:30)")
        shown = page.locator("#rows time").first
        utc = datetime.fromisoformat(shown.get_attribute("datetime") or "")
        expect(shown).to_have_attribute("title", f"{utc:%Y-%m-%d %H:%M:%S} UTC")
        there = utc + timedelta(hours=5, minutes=30)
        expect(shown).to_have_text(f"{there:%b %d %H:%M:%S}")
        page.locator("details.filters summary").click()
        page.get_by_label("From").fill(f"{there:%Y-%m-%dT%H:%M}")
        page.get_by_role("button", name="Apply").click()
        page.wait_for_url(f"**/logs?user=user-7&since={utc:%Y-%m-%dT%H}%3A{utc:%M}")
        expect(page.get_by_role("row")).to_have_count(2)
        expect(page.get_by_label("From")).to_have_value(f"{there:%Y-%m-%dT%H:%M}")
        page.get_by_role("link", name="Remove From").click()
        page.wait_for_url("**/logs?user=user-7")


def test_a_live_dashboard(
    browser: Browser, policyd: Policyd, gateway: Gateway, token: str, filled: dict[str, str]
) -> None:
    """The figures follow by themselves; what is open stays open, and the focus stays."""
    with _opened(browser) as page:
        _sign_in(page, policyd, token)
        key = _create_key(page, policyd, "Dashboard")
        assert _ask(gateway, key)[0] == 200
        page.goto(f"{policyd.console}/logs")
        expect(page.get_by_role("row").filter(has_text="Dashboard")).to_have_count(1)
        page.goto(policyd.console)
        row = page.get_by_role("row").filter(has_text="Dashboard")
        expect(row.get_by_role("cell").first).to_have_text("1")
        expect(page.locator("#top-users table")).to_be_visible()
        page.locator("#requests-numbers summary").click()
        page.locator("#figure-requests").focus()
        top = page.evaluate("scrollY")
        assert _ask(gateway, key)[0] == 200
        expect(row.get_by_role("cell").first).to_have_text("2")
        expect(page.locator("#requests-numbers table")).to_be_visible()
        expect(page.locator("#figure-requests")).to_be_focused()
        assert page.evaluate("scrollY") == top
        expect(page.locator("#top-users table")).to_be_visible()


def test_chosen_columns(
    browser: Browser, policyd: Policyd, token: str, filled: dict[str, str]
) -> None:
    """At 1280 pixels all usual columns fit, the operation uncut; the viewer may choose others."""
    with _opened(browser, viewport={"width": 1280, "height": 800}) as page:
        _sign_in(page, policyd, token)
        page.goto(f"{policyd.console}/logs?user=user-7")
        for name in ("Operation", "Model", "User", "API key", "Status", "Latency", "Cost"):
            expect(page.get_by_role("columnheader", name=name)).to_be_visible()
        cell = page.locator("#rows td.operation").first
        expect(cell).to_have_text("Chat completion")
        assert cell.evaluate("one => one.scrollWidth <= one.clientWidth")
        page.locator(".columns-menu summary").click()
        page.get_by_label("IP address", exact=True).last.check()
        page.get_by_label("Cost", exact=True).uncheck()
        page.get_by_role("button", name="Show these").click()
        expect(page.get_by_role("columnheader", name="IP address")).to_be_attached()
        expect(page.get_by_role("columnheader", name="Cost")).to_have_count(0)
        _check(page, "chosen columns")
