"""A console on a free port, and visitors, for tests."""

import re
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp

from policyd.command.address import Address
from policyd.command.database_url import sqlite_file
from policyd.console import ConsoleServer, console_url, first_link
from policyd.console.security.connection import LIMITS
from policyd.policies import TABLE
from policyd.server import preparation
from policyd.server.opening import OpenedStore
from policyd.settings import ServerSettings
from policyd.store import Store
from tests.support.databases import put_database

PASSWORD = "correct horse battery"
HOSTILE = "<script>alert(1)</script>\u202e\x1b[31m\x07\u2028\"'&"
"""A text that a client may send, which a page must neither run nor hide, and ..."""
SHOWN = (
    "&lt;script&gt;alert(1)&lt;/script&gt;"
    '<span class="hidden-character">\u2039U+202E\u203a\u2039U+001B\u203a</span>[31m'
    '<span class="hidden-character">\u2039U+0007\u203a\u2039U+2028\u203a</span>&#34;&#39;&amp;'
)
"""... how a page shows it."""


class Page(NamedTuple):
    """A response of a console."""

    status: int
    headers: Mapping[str, str]
    text: str

    def field(self, name: str) -> str:
        """The value of a hidden field."""
        match = re.search(rf'name="{name}" value="([^"]*)"', self.text)
        assert match, self.text
        return match[1]


class Visitor:
    """A browser without JavaScript, as far as a console can tell."""

    def __init__(self, url: str, **session: Any) -> None:
        self.url = url
        jar = aiohttp.CookieJar(unsafe=True)  # The jar takes cookies of an IP address too.
        self.session = aiohttp.ClientSession(cookie_jar=jar, auto_decompress=True, **session)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.session.close()

    async def get(self, path: str, *, follow: bool = True, **headers: str) -> Page:
        """Get a page; `headers` have _ in place of -."""
        return await self._ask("GET", path, follow, None, headers)

    async def post(
        self, path: str, form: Any = None, *, follow: bool = True, **headers: str
    ) -> Page:
        """Send a form, as a page of this console would."""
        return await self._ask("POST", path, follow, form, {"Origin": self.url} | headers)

    async def _ask(
        self, method: str, path: str, follow: bool, form: Any, headers: Mapping[str, str]
    ) -> Page:
        named = {name.replace("_", "-"): value for name, value in headers.items() if value}
        url = path if path.startswith("http") else self.url + path
        async with self.session.request(
            method, url, data=form, headers=named, allow_redirects=follow
        ) as answer:
            return Page(answer.status, answer.headers, await answer.text())

    async def sign_in(self, password: str, target: str = "") -> Page:
        """Sign in by the form; the redirect is not followed."""
        return await self.post("/sign-in", {"password": password, "next": target}, follow=False)


class Console:
    """A console with a database of its own, and its administrator."""

    def __init__(self, server: ConsoleServer, store: Store, settings: ServerSettings) -> None:
        self.server = server
        self.store = store
        self.settings = replace(settings, console=server.address)
        self.url = console_url(self.settings)
        self.token = settings.admin_token_file.read_text().strip()

    @property
    def first_link(self) -> str | None:
        """The one-time link."""
        return first_link(self.settings, self.store)


def settings(folder: Path, **changes: Any) -> ServerSettings:
    """The settings of a console on a free port, with a database in `folder`."""
    usual: dict[str, Any] = {
        "database_url": f"sqlite:///{folder}/policyd.db",
        "grpc": Address("127.0.0.1", 0),
        "admin": Address("127.0.0.1", 0),
        "admin_token_file": folder / "admin-token",
        "spool": folder / "spool",
        "console": Address("127.0.0.1", 0),
    }
    return ServerSettings(**usual | changes)


def prepare(chosen: ServerSettings) -> None:
    """Make the files that a server with these settings makes at its start."""
    preparation.prepare(chosen)
    store = Store(chosen.database_url)
    try:
        OpenedStore(store, chosen).open()
    finally:
        store.close()


class KeptDatabase:
    """A database in `folder` that tests use one after the other, each as it was at first, with one
    store, which compiles each of its statements once."""

    def __init__(self, folder: Path) -> None:
        self.settings = settings(folder)
        put_database(self.settings.database_url)
        prepare(self.settings)
        self.store = Store(self.settings.database_url)
        self._file = folder / "policyd.db"
        self._first = sqlite3.connect(":memory:")
        with closing(sqlite3.connect(self._file)) as made:
            made.backup(self._first)

    def renew(self) -> None:
        """Put the database back as it was at first."""
        with closing(sqlite3.connect(self._file)) as changed:
            self._first.backup(changed)

    def close(self) -> None:
        self.store.close()
        self._first.close()


@asynccontextmanager
async def running_on(kept: KeptDatabase, **changes: Any) -> AsyncIterator[Console]:
    """A console on that database, as it was at first, with these settings changed."""
    kept.renew()
    chosen = replace(kept.settings, **changes)
    async with ConsoleServer(chosen, kept.store, LIMITS) as server:
        yield Console(server, kept.store, chosen)


@asynccontextmanager
async def running(chosen: ServerSettings, **bounds: Any) -> AsyncIterator[Console]:
    """A console that runs with these settings; `bounds` are those of its connections."""
    file = sqlite_file(chosen.database_url)
    if file is not None and not file.exists():
        put_database(chosen.database_url)
    prepare(chosen)
    store = Store(chosen.database_url)
    try:
        async with ConsoleServer(chosen, store, replace(LIMITS, **bounds)) as server:
            yield Console(server, store, chosen)
    finally:
        store.close()


def settings_form(page_key: str, etag: str, **changes: object) -> dict[str, object]:
    """A form of a key's settings. `mode`, `value` and `override` are those of TABLE.original."""
    usual = {"name": page_key, "mode": "enforce", "override": "any", "accept": "user"}
    return named(usual | {"etag": etag} | changes)


def named(form: dict[str, object]) -> dict[str, object]:
    """That form with the names that its fields have for TABLE.original."""
    parts = ("mode", "value", "override")
    return {
        f"{name}.{TABLE.original.name}" if name in parts else name: value
        for name, value in form.items()
    }


async def models_shown(admin: Visitor, query: str) -> set[str]:
    """The models of the decisions that a page of the log shows, which identify them."""
    answer = await admin.get(f"/logs?{query}")
    assert answer.status == 200
    return {f"m{n}" for n in range(9) if f"<bdi>m{n}</bdi>" in answer.text}
