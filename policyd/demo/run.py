"""`policyd demo`: policyd, its gateway and the demo upstream started together, to try policyd.

All of it runs in one process, except for the background worker, which is a process of its own here,
too.
"""

import asyncio
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.server import Server as GatewayServer
from gateway.settings import Settings as GatewaySettings
from policyd.asgi.bounded import Bounded
from policyd.asgi.limits import Limits
from policyd.asgi.listener import Listener
from policyd.command import process
from policyd.command.address import Address, check_free, open_socket, reserve
from policyd.command.private_files import make_folder
from policyd.console import console_url, first_link
from policyd.demo import presence
from policyd.demo import sample as demo_sample
from policyd.demo.upstream import DemoUpstream
from policyd.engine.states import Mode
from policyd.errors import SettingsError
from policyd.policies import TABLE
from policyd.server.server import Server
from policyd.settings import ServerSettings
from policyd.store import Store

_OPENAI = "https://api.openai.com"
_GRACE = 3.0
"""Seconds that the built-in upstream has to finish its answers."""
_CHUNK_PAUSE = 0.05
"""Seconds between the chunks of a built-in answer, so that streaming can be seen."""


def run(data: Path, **asked: Any) -> None:
    """Run until Ctrl-C or SIGTERM, with options as cli/demo.py has them. Raises SettingsError,
    CannotListen or StoreUnavailable."""
    try:
        make_folder(data)
    except OSError as error:
        raise SettingsError(f"--data {data} cannot be made: {error.strerror}") from None
    # First: where another demo runs on the data, that also has the ports.
    with presence.claimed(data) as present:
        _start(present, data, **asked)


def _start(
    present: presence.Presence,
    data: Path,
    gateway: str,
    grpc: str,
    console: str,
    metrics: str | None,
    upstream: str | None,
    openai_api_key: str | None,
    openai_base_url: str | None,
    sample: bool,
) -> None:
    listen = _with_port(_address(gateway, "--gateway"), "--gateway")
    forwarding = GatewaySettings(
        listen=listen,
        upstream=upstream or openai_base_url or _OPENAI,
        # OpenAI's key must not go to any other upstream.
        upstream_api_key="" if upstream else _word(openai_api_key or "", "OPENAI_API_KEY"),
    )
    settings = ServerSettings(
        # Absolute, as commands may run in other folders.
        database_url=f"sqlite:///{data.absolute()}/policyd.db",
        grpc=_address(grpc, "--grpc"),
        admin=Address("127.0.0.1", 0),
        admin_token_file=data / "admin-token",
        spool=data / "policyd.db-spool",
        console=_with_port(_address(console, "--console"), "--console"),
        console_gateway_url=f"http://{listen}",
        metrics=_address(metrics, "--metrics") if metrics else None,
    )
    built_in = not (upstream or openai_api_key or openai_base_url)
    process.run(_run(settings, forwarding, built_in, sample, present))


def _address(text: str, flag: str) -> Address:
    address = Address.parse(text, flag)
    if not address.is_loopback:
        raise SettingsError(
            f"{flag} {address} can be reached from other machines, and the demo has no TLS: give "
            "an address such as 127.0.0.1:0, or run policyd serve and policyd-gateway serve"
        )
    return address


def _with_port(address: Address, flag: str) -> Address:
    """The address with a port that is free now, so that the other parts can be told of it."""
    with ExitStack() as held:
        return reserve(address, flag, held)


def _word(secret: str, name: str) -> str:
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise SettingsError(f"{name} must be one word of printable ASCII: check what it holds")
    return secret


def _metrics(address: Address) -> AbstractAsyncContextManager[Address]:
    # Imported late, so that a demo without --metrics starts sooner.
    from policyd.demo.metrics import serving_metrics

    return serving_metrics(address)


async def _run(
    settings: ServerSettings,
    forwarding: GatewaySettings,
    built_in: bool,
    sample: bool,
    present: presence.Presence,
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    check_free(settings.grpc, "--grpc")
    key = _first_key(settings.database_url, sample)
    async with AsyncExitStack() as running:
        if settings.metrics is not None:
            metrics = await running.enter_async_context(_metrics(settings.metrics))
            settings = replace(settings, metrics=metrics)
        server = await running.enter_async_context(Server(settings))
        forwarding = replace(forwarding, policyd=str(server.grpc), metrics=settings.metrics)
        if built_in:
            upstream = await running.enter_async_context(_own_upstream(forwarding.limits))
            forwarding = replace(forwarding, upstream=upstream)
        gateway = await running.enter_async_context(GatewayServer(forwarding))
        present.tell(
            presence.Demo(
                settings.database_url, str(server.admin), str(settings.admin_token_file.absolute())
            )
        )
        click.echo(_welcome(gateway.url, server, forwarding.upstream, settings, key))
        await stopping.wait()


def _first_key(database_url: str, sample: bool) -> str | None:
    """The API key to try policyd with; None where an earlier run has created one."""
    store = Store(database_url)
    try:
        store.migrate()
        if store.keys.list(limit=1, show_revoked=True):
            return None
        key, secret = store.keys.create("demo", TABLE.with_original(Mode.ENFORCE))
        if sample:
            demo_sample.fill(store, key.id)
        return secret
    finally:
        store.close()


class _Ordinary(Bounded, HttpToolsProtocol):
    """uvicorn's own HTTP/1.1, without the changes that a proxy needs."""


@asynccontextmanager
async def _own_upstream(limits: Limits) -> AsyncIterator[str]:
    listening = open_socket(Address("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    app = DemoUpstream(pause=_CHUNK_PAUSE)
    # An ordinary server, as upstreams are: with a Date header, and no wire-exact replies.
    listener = Listener(
        app, tls=None, grace=_GRACE, limits=limits, http=_Ordinary, date_header=True
    )
    await listener.start(listening)
    try:
        yield url
    finally:
        await listener.stop()


def _welcome(
    url: str, server: Server, upstream: str, settings: ServerSettings, key: str | None
) -> str:
    known = key or "$POLICYD_KEY"
    message = '{"role": "user", "content": "Hello there"}'
    without = f'{{"model": "gpt-4o-mini", "messages": [{message}]}}'
    named = f'{{"model": "gpt-4o-mini", "user": "alice", "messages": [{message}]}}'
    return f"""\
The gateway listens on {url}; point any OpenAI client at {url}/v1.
policyd answers gRPC on {server.grpc}. Requests that pass go to {upstream}.
{_console_line(settings)}{_metrics_line(settings)}
{_key_lines(settings, key)}
{_command_lines(settings)}

Blocked, because it has no user:
  {_curl(url, known, without)}

Allowed:
  {_curl(url, known, named)}

Ctrl-C stops all of it. The data stays in {settings.admin_token_file.parent}."""


def _console_line(settings: ServerSettings) -> str:
    store = Store(settings.database_url)
    try:
        link = first_link(settings, store)
    finally:
        store.close()
    if link:
        return f"The console, where this one-time link sets your password: {link}"
    return f"The console: {console_url(settings)}"


def _metrics_line(settings: ServerSettings) -> str:
    return (
        f"\nMetrics, for Prometheus: http://{settings.metrics}/metrics" if settings.metrics else ""
    )


def _key_lines(settings: ServerSettings, key: str | None) -> str:
    if key:
        return f"API key, which is shown this once: {key}"
    return (
        "The API key was shown at the first start. For one to put in place of $POLICYD_KEY:\n"
        f"  {shlex.quote(sys.argv[0])} keys create NAME --policy {TABLE.original.name}=enforce "
        f"--database-url {shlex.quote(settings.database_url)}"
    )


def _command_lines(settings: ServerSettings) -> str:
    url = f"--database-url {shlex.quote(settings.database_url)}"
    command = f"  {shlex.quote(sys.argv[0])} logs list"
    if presence.is_found(settings.admin_token_file.parent):
        return (
            f"Its log, keys and database, from another terminal (elsewhere with {url}):\n{command}"
        )
    return f"Its log, keys and database, from another terminal:\n{command} {url}"


def _curl(url: str, key: str, body: str) -> str:
    headers = f"-H 'Content-Type: application/json' -H \"x-usagepanda-api-key: {key}\""
    return f"curl -i {url}/v1/chat/completions {headers} -d '{body}'"
