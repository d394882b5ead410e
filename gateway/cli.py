"""The command `policyd-gateway`."""

from pathlib import Path
from typing import Any

import click

from gateway.settings import KEY_HEADERS, Settings, read_secret
from gateway.supervisor import ReadAgain, supervise
from policyd.command.address import Address
from policyd.command.configuration import Group, Options, ServerCommand, read_again
from policyd.command.crew import orders
from policyd.command.open_files import raise_limit
from policyd.command.process import run, start_logging

_FILE = click.Path(path_type=Path, dir_okay=False)
_MODE = (
    "did you mean --default-mode of policyd serve? Whether users are enforced is set in policyd, "
    "for all API keys or for each"
)
_OPTIONS = Options(
    "GATEWAY",
    dict.fromkeys(("enforce_user_ids", "default_mode", "enforce", "mode"), _MODE),
    like=("POLICYD_GATEWAY_",),
)
_option = _OPTIONS.option


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="policyd")
def main() -> None:
    """policyd-gateway stands before an LLM API and lets through what policyd allows.

    Exit status: 0 if all went well, 1 if not, 2 if the command or its settings are wrong.
    """
    _OPTIONS.check_environment()


@main.command(cls=ServerCommand)
@_OPTIONS.server_config
@_option("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="Where clients connect.")
@_option(
    "--policyd",
    default="127.0.0.1:50051",
    metavar="HOST:PORT,…",
    help="The policyd to ask. Of several, or of a name with several addresses, any that answers.",
)
@_option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    help="Processes; one a core is enough. Bounds of memory and connections are for each.",
)
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
    "--upstream-api-key-header",
    type=click.Choice(KEY_HEADERS, case_sensitive=False),
    default=None,
    help="The header that the upstream's API key goes in; clients' own are taken out of all four. "
    "By default the one that the upstream is known for: Azure's api-key, Anthropic's x-api-key, "
    "Google's x-goog-api-key, Authorization for any other.",
)
@_option(
    "--on-policy-error",
    type=click.Choice(("deny", "allow")),
    default="deny",
    help="What to do with requests while policyd cannot be reached in time. allow: forward them "
    "unchecked. What policyd would not decide is refused either way.",
)
@_option("--policy-timeout", type=click.FloatRange(0.001), default=1.0, help="Seconds for policyd.")
@_option(
    "--max-body",
    type=click.IntRange(1),
    default=64 * 2**20,
    help="Bytes of a body that is checked, also decompressed. A larger one is refused if enforced.",
)
@_option(
    "--body-memory",
    type=click.IntRange(1),
    default=None,
    help="Bytes of all bodies over 64 KiB that are held at once, also decompressed; by default 512 "
    "MiB, or four times --max-body. Beyond it, requests get 503.",
)
@_option(
    "--max-connections",
    type=click.IntRange(1),
    default=None,
    help="Clients' connections; by default 10,000, or half of what the limit of open files leaves. "
    "Beyond it, those that wait longest are closed for new ones.",
)
@_option(
    "--head-timeout",
    type=click.FloatRange(0.001),
    default=10.0,
    help="Seconds for a TLS handshake, and for a request's headers to be complete.",
)
@_option(
    "--body-timeout",
    type=click.FloatRange(0.001),
    default=120.0,
    help="Seconds for a body that is checked. One that streams through brings 1 KiB a second.",
)
@_option(
    "--idle-timeout",
    type=click.FloatRange(0.001),
    default=75.0,
    help="Seconds that a connection is kept between two requests.",
)
@_option(
    "--write-timeout",
    type=click.FloatRange(0.001),
    default=60.0,
    help="Seconds for a client to take more of its answer, once 64 KiB of it wait.",
)
@_option(
    "--answer-memory",
    type=click.IntRange(2**20),
    default=256 * 2**20,
    help="Bytes of answers that are held at once for clients which do not read them. Beyond it, "
    "those that have not read for longest are closed.",
)
@_option(
    "--connect-timeout",
    type=click.FloatRange(0.001),
    default=10.0,
    help="Seconds to connect to the upstream: to look up its name, and for its TLS handshake.",
)
@_option(
    "--send-timeout",
    type=click.FloatRange(0.001),
    default=60.0,
    help="Seconds for the upstream to take more of a request, once 64 KiB of it wait.",
)
@_option(
    "--first-byte-timeout",
    type=click.FloatRange(0.001),
    default=600.0,
    help="Seconds from a request's end until the head of the upstream's answer is complete. Models "
    "that reason take minutes.",
)
@_option(
    "--read-timeout",
    type=click.FloatRange(0.001),
    default=300.0,
    help="Seconds between two pieces of the upstream's answer.",
)
@_option(
    "--breaker",
    type=click.IntRange(0),
    default=5,
    help="Connections to the upstream that fail in a row until requests get 502 at once, but for "
    "one that tries after a pause of 1 to 30 seconds. 0: none is refused.",
)
@_option(
    "--drain",
    type=click.FloatRange(0),
    default=5.0,
    help="Seconds that SIGTERM leaves balancers to look elsewhere: requests are still answered, "
    "each answer ends its connection, and /readyz says 503. An orchestrator has to give --drain, "
    "the longer grace, and a few seconds more.",
)
@_option(
    "--grace",
    type=click.FloatRange(0),
    default=20.0,
    help="Seconds to finish requests at the end.",
)
@_option(
    "--stream-grace",
    type=click.FloatRange(0),
    default=None,
    help="Seconds to finish answers that have begun, as streams have; by default those of --grace.",
)
@_option("--tls-cert", type=_FILE, help="PEM certificate chain to listen with.")
@_option("--tls-key", type=_FILE, help="PEM private key to listen with.")
@_option("--policyd-tls", is_flag=True, help="Ask policyd over TLS.")
@_option("--policyd-ca", type=_FILE, help="PEM authorities that policyd's certificate may be of.")
@_option("--policyd-cert", type=_FILE, help="PEM certificate to show to policyd.")
@_option("--policyd-key", type=_FILE, help="PEM private key of --policyd-cert.")
@_option("--policyd-token-file", type=_FILE, help="Holds the token that policyd wants of callers.")
@_option("--insecure", is_flag=True, help="Listen beyond this machine without TLS.")
@_OPTIONS.log_level
def serve(log_level: str, **given: Any) -> None:
    """Run the gateway.

    A flag wins over the environment (GATEWAY_*), and that over --config FILE (YAML).
    SIGTERM drains it, SIGINT (Ctrl-C) does not, a second one cuts the requests under way. SIGHUP
    replaces its workers one at a time, by what the --config file, secrets and certificates are
    then, and by the version that is installed then; --listen and --workers stay.
    """
    start_logging(log_level)
    raise_limit()
    context = click.get_current_context()
    run(_serve(_settings(given), lambda: _settings(read_again(context))))


def _settings(given: dict[str, Any]) -> Settings:
    given = {name: value for name, value in given.items() if name != "log_level"}
    given["policyd_token"] = ""
    for name in ("api_key", "upstream_api_key", "policyd_token"):
        path = given.pop(f"{name}_file")
        given[name] = given[name] or (read_secret(path) if path else "")
    given["upstream_api_key_header"] = given["upstream_api_key_header"] or ""
    given["listen"] = Address.parse(given["listen"], "--listen")
    return Settings(**given)


async def _serve(settings: Settings, again: ReadAgain) -> None:
    async with orders() as given:
        await supervise(settings, given, _say_ready, again)


def _say_ready(url: str) -> None:
    click.echo(f"policyd-gateway is ready: {url}")
