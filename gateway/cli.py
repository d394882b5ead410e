"""The command `policyd-gateway`."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from gateway.server import CannotListen, Server
from gateway.settings import (
    Address,
    Settings,
    SettingsError,
    check_environment,
    read_config,
    read_secret,
)

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)
_LEVELS = ("debug", "info", "warning", "error")
_KNOWN: set[str] = {"config"}


def _option(flag: str, **attributes: Any) -> Callable[[_Command], _Command]:
    """A click option that also reads GATEWAY_* and --config."""
    name = flag.removeprefix("--").replace("-", "_")
    _KNOWN.add(name)
    return click.option(
        flag,
        envvar=f"GATEWAY_{name.upper()}",
        show_envvar=True,
        show_default="default" in attributes,
        **attributes,
    )


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None:
        context.default_map = {**(context.default_map or {}), **read_config(path, _KNOWN)}


class _Group(click.Group):
    """Says what is wrong, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """See click.Group."""
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            raise click.UsageError(str(error)) from error
        except CannotListen as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="policyd")
def main() -> None:
    """policyd-gateway stands before an LLM API and lets through what policyd allows.

    Exit status: 0 if all went well, 1 if not, 2 if the command or its settings are wrong.
    """
    check_environment(_KNOWN)


@main.command()
@click.option(
    "--config",
    type=_FILE,
    envvar="GATEWAY_CONFIG",
    show_envvar=True,
    is_eager=True,  # Before the options that it sets.
    expose_value=False,
    callback=_read_config,
    help="YAML file with settings, named as the options are.",
)
@_option("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="Where clients connect.")
@_option("--policyd", default="127.0.0.1:50051", metavar="HOST:PORT", help="The policyd to ask.")
@_option(
    "--upstream",
    default="https://api.openai.com",
    metavar="URL",
    help="The API to forward to. A path in it is put before the request's, unless that has it.",
)
@_option("--api-key-file", type=_FILE, help="Holds the policyd key of requests that bring none.")
@_option(
    "--api-key", default=None, help="The same as a value. A flag shows in ps; prefer the others."
)
@_option(
    "--upstream-api-key-file",
    type=_FILE,
    help="Holds the upstream's API key, sent in place of whatever key clients send.",
)
@_option("--upstream-api-key", default=None, help="The same as a value. See --api-key.")
@_option(
    "--on-policy-error",
    type=click.Choice(("deny", "allow")),
    default="deny",
    help="What to do with requests while policyd gives no decision. allow: forward them unchecked.",
)
@_option("--policy-timeout", type=click.FloatRange(0.001), default=1.0, help="Seconds for policyd.")
@_option(
    "--max-body",
    type=click.IntRange(1),
    default=64 * 2**20,
    help="Bytes of a body that is checked, also decompressed. A larger one is refused if enforced.",
)
@_option(
    "--connect-timeout", type=click.FloatRange(0.001), default=10.0, help="Seconds to connect."
)
@_option(
    "--read-timeout",
    type=click.FloatRange(0.001),
    default=600.0,
    help="Seconds until the upstream's first byte, and between two of its bytes.",
)
@_option(
    "--grace",
    type=click.IntRange(0),
    default=30,
    help="Seconds to finish requests at the end.",
)
@_option("--tls-cert", type=_FILE, help="PEM certificate chain to listen with.")
@_option("--tls-key", type=_FILE, help="PEM private key to listen with.")
@_option("--policyd-tls", is_flag=True, help="Ask policyd over TLS.")
@_option("--policyd-ca", type=_FILE, help="PEM authorities that policyd's certificate may be of.")
@_option("--policyd-cert", type=_FILE, help="PEM certificate to show to policyd.")
@_option("--policyd-key", type=_FILE, help="PEM private key of --policyd-cert.")
@_option("--policyd-token-file", type=_FILE, help="Holds the token that policyd wants of callers.")
@_option("--insecure", is_flag=True, help="Listen beyond this machine without TLS.")
@_option("--log-level", type=click.Choice(_LEVELS), default="info", help="How much is logged.")
def serve(log_level: str, **given: Any) -> None:
    """Run the gateway.

    Options also come from the environment (GATEWAY_*) and from --config FILE (YAML), in this order.
    Ctrl-C or SIGTERM finishes the requests under way; a second one cuts them.
    """
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    settings = _settings(given)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings))


def _settings(given: dict[str, Any]) -> Settings:
    given["policyd_token"] = ""
    for name in ("api_key", "upstream_api_key", "policyd_token"):
        path = given.pop(f"{name}_file")
        given[name] = given[name] or (read_secret(path) if path else "")
    given["listen"] = Address.parse(given["listen"], "--listen")
    return Settings(**given)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


async def _serve(settings: Settings) -> None:
    stopping = asyncio.Event()
    async with Server(settings) as server:

        def stop() -> None:
            if stopping.is_set():
                server.hurry()
            stopping.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        click.echo(f"policyd-gateway is ready: {server.url}")
        await stopping.wait()
