"""The page of end users: counted, sorted, searched, and linked to their requests."""

import html
import re
from datetime import timedelta

import pytest

from tests.support.consoles import (
    Console,
    Visitor,
)
from tests.support.records import denied, outcome, record, utc_now


async def test_end_users(console: Console, admin: Visitor) -> None:
    """The page shows requests, blocks, tokens and cost of each end user, in any order, and the
    share attributed.
    """
    at = utc_now()
    key, _ = console.store.keys.create("app")
    few = [record(at, end_user="few", key_id=key.id)]
    many = [record(at, end_user="many") for _ in range(4)]
    costly = outcome(few[0], input_tokens=1000, output_tokens=234, cost_nano=2_500_000_000)
    console.store.log.append([*few, *many, denied(at), costly])
    text = (await admin.get("/users?period=today")).text
    assert ">83.3%<" in text
    assert "5 of 6 requests in scope" in text
    assert text.index("<bdi>many") < text.index("<bdi>few")
    assert "1,234" in text
    assert "$2.50" in text
    assert 'aria-sort="descending"' in text
    by_cost = (await admin.get("/users?period=today&sort=cost")).text
    assert by_cost.index("<bdi>few") < by_cost.index("<bdi>many")
    by_name = (await admin.get("/users?period=today&sort=user")).text
    assert by_name.index("<bdi>few") < by_name.index("<bdi>many")
    of_key = (await admin.get(f"/users?period=today&key={key.id}")).text
    assert "<bdi>many" not in of_key
    assert ">100%<" in of_key
    long_ago = (await admin.get("/users?period=days&since=2020-01-01&until=2020-02-01")).text
    assert "No end users in this period" in long_ago


async def test_many_users(console: Console, admin: Visitor) -> None:
    """Many users are listed page by page."""
    console.store.log.append([record(utc_now(), end_user=f"u{n:03}") for n in range(120)])
    first = (await admin.get("/users?period=today&sort=user")).text
    assert "u049" in first
    assert "u050" not in first
    link = html.unescape(first.partition('<p class="pages"><a class="button" href="')[2])
    second = (await admin.get(link.partition('"')[0])).text
    assert "u050" in second
    assert "u049" not in second


@pytest.mark.parametrize(
    "query",
    [
        "period=forever",
        "period=days",
        "period=days&since=x&until=y",
        "period=days&since=2026-02-01&until=2026-01-01",
        "period=days&since=1900-01-01&until=2026-01-01",
        "period=days&since=9999-12-31&until=9999-12-31",
        "period=days&since=9998-12-31&until=9999-12-30",
        "key=nonsense",
        "key=%00",
    ],
)
async def test_users_of_nonsense(admin: Visitor, query: str) -> None:
    """A malformed filter gets a message."""
    answer = await admin.get(f"/users?{query}")
    assert answer.status == 400
    assert 'role="alert"' in answer.text


async def test_an_order_that_is_none(console: Console, admin: Visitor) -> None:
    """An unknown order is taken for the default one."""
    console.store.log.append([record(utc_now())])
    for query in (
        "sort=x&order=y",
        "offset=-1",
        "offset=x",
        "offset=99999999999999999999",
    ):
        assert (await admin.get(f"/users?{query}")).status == 200


async def test_searching_end_users(console: Console, admin: Visitor) -> None:
    """End users are searched by a part, in any letter case, and sorted; the text is taken as it
    is, and stays with the sorting and on further pages."""
    names = ["Ada Lovelace", "grace@example.com", "100%", *(f"user-{n:03d}" for n in range(60))]
    console.store.log.append([record(utc_now(), end_user=name) for name in names])
    for text, shown, hidden in (
        ("LOVE", "Ada Lovelace", "user-001"),
        ("%25", "100%", "Ada Lovelace"),
        ("_", "No end user contains this text", "Ada Lovelace"),
        ("%00", "No end user contains this text", "Ada Lovelace"),
    ):
        table = (await admin.get(f"/users?find={text}")).text.partition("<tbody>")[2]
        assert shown in table, text
        assert hidden not in table, text
    first = (await admin.get("/users?find=user-&sort=user")).text
    url = html.unescape(
        first.partition('class="pages"')[2].partition('href="')[2].partition('"')[0]
    )
    assert "find=user-" in url
    second = (await admin.get(url)).text
    assert "user-059" in second
    assert "user-000" not in second.partition("<tbody>")[2]


async def test_links_from_end_users(console: Console, admin: Visitor) -> None:
    """Each number of the page of end users links to exactly the rows that it counts."""
    key, _ = console.store.keys.create("Support chat")
    rows = [record(utc_now(), key_id=key.id, end_user="test") for _ in range(3)]
    rows += [record(utc_now(), key_id=key.id, end_user="ada@example.com") for _ in range(2)]
    rows += [record(utc_now(), key_id=key.id, end_user="ada")]
    old = [record(utc_now() - timedelta(days=20), key_id=key.id, end_user="test")]
    console.store.log.append(
        [*rows, *old, denied(utc_now(), key_id=key.id), outcome(rows[0], status=500)]
    )
    page = html.unescape((await admin.get("/users")).text)
    for told, count in (
        ("3 requests say <code>user = <bdi>test</bdi></code>", 3),
        ("2 requests say <code>user = <bdi>ada@example.com</bdi></code>", 2),
    ):
        assert told in page
        url = page.partition(told)[0].rpartition('href="')[2].partition('"')[0]
        assert (await admin.get(url)).text.count('class="whole-row"') == count
    errors = re.findall(r'href="([^"]*answer=error[^"]*)"', page)
    assert len(errors) == 1
    assert (await admin.get(errors[0])).text.count('class="whole-row"') == 1
    (unknown,) = re.findall(r'href="([^"]*nouser=1[^"]*)"', page)
    assert (await admin.get(unknown)).text.count('class="whole-row"') == 1
    assert "2 requests name an e-mail address as the user" in page
