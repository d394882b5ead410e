"""How often a client may try to sign in: from an address, for the account, and through proxies."""

import ipaddress
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from policyd.console.security import attempts
from policyd.console.security.attempts import Attempts
from policyd.console.security.client_address import client_address
from policyd.decision_log.refused_key import source_of
from policyd.errors import SettingsError
from policyd.settings import dump_settings, load_settings
from tests.support.consoles import (
    PASSWORD,
    Console,
    KeptDatabase,
    Page,
    Visitor,
    running,
    running_on,
    settings,
)
from tests.support.processes import Policyd

EACH, ALL = attempts._EACH[0][0], attempts._ALL[0][0]
WRONG = "wrong password here"


@pytest.fixture
async def console(kept: KeptDatabase) -> AsyncIterator[Console]:
    """A console whose trusted proxy is this machine."""
    async with running_on(kept, console_trusted_proxies=("127.0.0.0/8",)) as console:
        yield console


async def attempt(visitor: Visitor, password: str, forwarded: str) -> Page:
    """Try to sign in from behind the proxy."""
    return await visitor.post(
        "/sign-in", {"password": password}, follow=False, X_Forwarded_For=forwarded
    )


async def flood(console: Console) -> None:
    """Use up the account's limit, as an attacker with many addresses does."""
    async with Visitor(console.url) as attacker:
        for number in range(ALL):
            answer = await attempt(attacker, WRONG, f"198.51.100.{number}")
            assert answer.status == 401
        answer = await attempt(attacker, WRONG, "203.0.113.1")
        assert answer.status == 429
        assert "from all addresses" in answer.text
        assert int(answer.headers["Retry-After"]) >= 1


async def set_password(visitor: Visitor, console: Console) -> None:
    await visitor.sign_in(console.token)
    new = {"password": PASSWORD, "repeated": PASSWORD, "current": console.token}
    assert (await visitor.post("/account/password", new, follow=False)).status == 303


async def test_many_addresses_and_the_administrator(console: Console) -> None:
    """The account's limit holds for every unknown device, even with the right password by then.

    A device that was used before and the administration token sign in meanwhile.
    """
    async with Visitor(console.url) as known, Visitor(console.url) as stranger:
        await set_password(known, console)
        await flood(console)
        await known.post("/sign-out")
        assert (await attempt(stranger, PASSWORD, "203.0.113.2")).status == 429
        assert (await attempt(known, PASSWORD, "203.0.113.2")).status == 303
        assert (await attempt(stranger, console.token, "203.0.113.2")).status == 303
        # The browser is a known device now.
        assert (await attempt(stranger, PASSWORD, "203.0.113.2")).status == 303


async def test_an_attacker_at_the_administrators_address(console: Console) -> None:
    """A known device has its own limit, even behind one NAT with an attacker."""
    async with Visitor(console.url) as known, Visitor(console.url) as attacker:
        await set_password(known, console)
        for _ in range(EACH):
            assert (await attempt(attacker, WRONG, "203.0.113.7")).status == 401
        assert (await attempt(attacker, PASSWORD, "203.0.113.7")).status == 429
        assert (await attempt(attacker, console.token, "203.0.113.7")).status == 429
        assert (await attempt(known, PASSWORD, "203.0.113.7")).status == 303


async def test_a_device_that_was_stolen(console: Console) -> None:
    """A stolen device may not guess more often than an address may, however many addresses it uses,
    and is unknown once the administrator has signed out everywhere.
    """
    async with Visitor(console.url) as known, Visitor(console.url) as other:
        await set_password(known, console)
        await known.post("/sign-out")
        for number in range(EACH):
            assert (await attempt(known, WRONG, f"203.0.113.{number}")).status == 401
        answer = await attempt(known, PASSWORD, "203.0.113.200")
        assert (answer.status, "from all addresses" in answer.text) == (429, False)
        await attempt(other, console.token, "203.0.113.201")
        await other.post("/sign-out-everywhere")
        await flood(console)
        assert (await attempt(other, PASSWORD, "203.0.113.202")).status == 429


async def test_success_uses_nothing_up(console: Console) -> None:
    """A successful sign-in uses up no limit, and keeps no other client out."""
    for _ in range(ALL + 1):
        async with Visitor(console.url) as visitor:
            assert (await attempt(visitor, console.token, "203.0.113.3")).status == 303


async def test_guessing_the_current_password(console: Console) -> None:
    """A session that was left open does not allow guessing the password, and an attacker's attempts
    do not keep the administrator from changing it.
    """
    async with Visitor(console.url) as visitor:
        await set_password(visitor, console)
        await flood(console)
        new = {"password": PASSWORD + "!", "repeated": PASSWORD + "!"}
        for _ in range(EACH):
            wrong = await visitor.post("/account/password", new | {"current": WRONG})
            assert "current password is wrong" in wrong.text
        late = await visitor.post("/account/password", new | {"current": PASSWORD})
        assert late.status == 429
    async with Visitor(console.url) as other:
        await attempt(other, console.token, "203.0.113.4")
        done = await other.post("/account/password", new | {"current": PASSWORD}, follow=False)
        assert done.status == 303


async def test_without_a_trusted_proxy(tmp_path: Path) -> None:
    """Without a trusted proxy the header is the client's own claim, and is ignored."""
    async with running(settings(tmp_path)) as console, Visitor(console.url) as visitor:
        for number in range(EACH):
            assert (await attempt(visitor, WRONG, f"198.51.100.{number}")).status == 401
        assert (await attempt(visitor, WRONG, "203.0.113.1")).status == 429


PROXIES = ("10.0.0.0/8", "192.0.2.1", "2001:db8:1::/48")


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("198.51.100.1", ["203.0.113.9"], "198.51.100.1"),
        ("10.1.2.3", [], "10.1.2.3"),
        ("10.1.2.3", ["203.0.113.9"], "203.0.113.9"),
        ("::ffff:10.1.2.3", ["203.0.113.9"], "203.0.113.9"),
        ("2001:db8:1::1%eth0", ["203.0.113.9"], "203.0.113.9"),
        # The client's own values stand left of those that our proxies have added.
        ("10.1.2.3", ["127.0.0.1, 203.0.113.9"], "203.0.113.9"),
        ("10.1.2.3", ["127.0.0.1", "203.0.113.9, 192.0.2.1"], "203.0.113.9"),
        ("10.1.2.3", ["203.0.113.9", "198.51.100.7"], "198.51.100.7"),
        ("10.1.2.3", ["garbage, 203.0.113.9"], "203.0.113.9"),
        ("10.1.2.3", ["10.9.9.9, 10.1.1.1"], "10.9.9.9"),
        # Some proxies write it so.
        ("10.1.2.3", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.1.2.3", ["[2001:db8::5]:4711"], "2001:db8::5"),
        ("10.1.2.3", ["[2001:db8::5]"], "2001:db8::5"),
        ("10.1.2.3", ["2001:db8::5"], "2001:db8::5"),
        ("10.1.2.3", ["::ffff:203.0.113.9"], "203.0.113.9"),
        # Malformed values are not followed.
        ("10.1.2.3", ["203.0.113.9, unknown"], "10.1.2.3"),
        ("10.1.2.3", ["203.0.113.9, unknown, 192.0.2.1"], "10.1.2.3"),
        ("10.1.2.3", ["203.0.113.9,"], "10.1.2.3"),
        ("10.1.2.3", [""], "10.1.2.3"),
        ("10.1.2.3", ["203.0.113.9 192.0.2.1"], "10.1.2.3"),
        ("10.1.2.3", ["203.0.113.9:x"], "10.1.2.3"),
        ("10.1.2.3", ["[203.0.113.9"], "203.0.113.9"),
        ("10.1.2.3", ["1.2.3.4.5", "203.0.113"], "10.1.2.3"),
        ("10.1.2.3", ["٣.1.1.1"], "10.1.2.3"),
        ("", ["203.0.113.9"], ""),
    ],
)
def test_the_address_that_counts(peer: str, forwarded: list[str], expected: str) -> None:
    """The address that counts is the right-most that is no trusted proxy's."""
    proxies = [ipaddress.ip_network(one) for one in PROXIES]
    assert client_address(peer, forwarded, proxies) == expected
    assert client_address(peer, forwarded, []) == client_address(peer, [], proxies)


def test_a_long_header() -> None:
    """A long header is read in linear time."""
    proxies = [ipaddress.ip_network("10.0.0.0/8")]

    def seconds(number: int) -> float:
        header = ",".join(["10.0.0.1"] * number)
        began = time.process_time()
        for _ in range(3):
            client_address("10.0.0.1", [header], proxies)
        return time.process_time() - began

    seconds(100)
    assert seconds(16_000) < 16 * seconds(4_000)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("somewhere", ""),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(address: str, network: str) -> None:
    """All addresses of one IPv6 customer count as one."""
    assert source_of(address) == network


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded however many addresses an attacker has.

    The clients that used up their limit most recently are remembered.
    """
    monkeypatch.setattr(attempts, "MAX_SOURCES", 50)
    counted = Attempts()
    for _ in range(EACH):
        assert counted.wait("one") == 0
    for number in range(1000):
        counted.wait(f"other {number}")
        assert counted.wait("one") > 0
    assert len(counted._sources) == 50
    for _ in range(1000):
        counted.wait("one")
        counted.wait_for_all()
    assert len(counted._sources["one"]) == EACH
    assert len(counted._all) == ALL


def test_after_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a limit per minute and one per hour, and each ends.

    Setting the clock back changes nothing.
    """
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    counted = Attempts()
    minute, hour = attempts._EACH
    passed = 0
    while True:
        made = sum(counted.wait("one") == 0 for _ in range(minute[0] + 1))
        if not made:
            break
        assert made == minute[0]
        passed += made
        assert counted.wait("one") > 0
        clock += minute[1]
    assert passed == hour[0]
    assert minute[1] < counted.wait("one") <= hour[1]
    clock += counted.wait("one")
    assert counted.wait("one") == 0


@pytest.mark.parametrize(
    ("proxies", "told"),
    [
        ("x", "takes addresses and networks"),
        ("10.0.0.1,", "takes addresses and networks"),
        ("10.0.0.0/33", "takes addresses and networks"),
        ("10.0.0.7/8", "did you mean 10.0.0.0/8"),
        ("0.0.0.0/0", "every client"),
        ("::/0", "every client"),
    ],
)
def test_proxies_that_are_none(tmp_path: Path, proxies: str, told: str) -> None:
    """A malformed list of proxies is rejected at the start, with the reason."""
    with pytest.raises(SettingsError, match=told):
        settings(tmp_path, console_trusted_proxies=tuple(proxies.split(",")))


def test_proxies_reach_the_process_that_has_the_console(tmp_path: Path) -> None:
    """The process that serves the console gets the whole list of proxies."""
    chosen = settings(tmp_path, console_trusted_proxies=PROXIES)
    assert load_settings(dump_settings(chosen)) == chosen


@pytest.mark.slow
async def test_the_setting(tmp_path: Path) -> None:
    """A flag of a real server sets the proxies."""
    flags = ("--console", "127.0.0.1:0", "--console-trusted-proxies", "192.0.2.1, 127.0.0.1")
    server = Policyd(tmp_path, *flags)
    try:
        async with Visitor(server.console) as visitor:
            for number in range(EACH + 1):
                answer = await attempt(visitor, WRONG, f"203.0.113.{number}")
                assert answer.status == 401
    finally:
        assert server.stop() == 0
