"""The command `policyd`."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from policyd import configuration, explanation, options
from policyd.configuration import Address, Group, ServerCommand, run, start_logging
from policyd.crew import orders
from policyd.files import raise_limit
from policyd.key_commands import keys
from policyd.log_commands import logs
from policyd.options import MODES, OPTIONS, HeaderLine, option
from policyd.private_files import UMASK
from policyd.settings import ServerSettings
from policyd.simulate_command import simulate
from policyd.supervisor import ReadAgain, supervise


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="policyd")
def main() -> None:
    """policyd decides whether a request to an LLM API may go upstream.

    A flag wins over the environment (POLICYD_*), and that over --config FILE (YAML). `serve` and
    `demo` refuse settings that are not theirs; the other commands leave those of others alone.

    Exit status: 0 if all went well, 1 if not (`explain`: if the request would be denied), 2 if the
    command or its settings are wrong.
    """
    os.umask(UMASK)
    OPTIONS.check_environment()


main.add_command(keys)
main.add_command(logs)
main.add_command(simulate)


@main.command(cls=ServerCommand)
@OPTIONS.server_config
@options.database_url
@option("--grpc", default="127.0.0.1:50051", metavar="HOST:PORT", help="Where gateways ask.")
@option("--admin", default="127.0.0.1:50052", metavar="HOST:PORT", help="Where keys are managed.")
@option("--http", metavar="HOST:PORT", help="Where proxies without gRPC ask; off unless given.")
@option(
    "--workers", default=1, type=click.IntRange(1, 256), help="Processes; one a core is enough."
)
@option(
    "--default-mode",
    default="off",
    type=click.Choice(list(MODES)),
    help="What keys do that set no mode.",
)
@option(
    "--admin-token-file",
    type=click.Path(path_type=Path),
    help="Made if it is not there; by default admin-token beside the database.",
)
@option(
    "--caller-token-file", type=click.Path(path_type=Path), help="Token that gateways must show."
)
@option("--tls-cert", type=click.Path(path_type=Path), help="PEM certificate chain of the server.")
@option("--tls-key", type=click.Path(path_type=Path), help="PEM private key of the server.")
@option(
    "--tls-client-ca", type=click.Path(path_type=Path), help="Callers must have its certificate."
)
@option("--max-message", default=4 * 2**20, type=click.IntRange(1024), help="Bytes of a request.")
@option(
    "--max-body",
    default=64 * 2**20,
    type=click.IntRange(1),
    help="Bytes of a body that --http reads, as it came and decompressed.",
)
@option(
    "--body-memory",
    default=None,
    type=click.IntRange(1),
    help="Bytes of all bodies over 64 KiB that are held at once, also decompressed; by default 512 "
    "MiB, or four times --max-body. Beyond it, checks get 503.",
)
@option(
    "--max-connections",
    default=None,
    type=click.IntRange(1),
    help="Connections to --grpc, and to --http; by default 10,000, or what the limit of open files "
    "leaves. Beyond it, --grpc takes no new ones, and --http closes those that wait longest.",
)
@option(
    "--max-connection-age",
    default=600.0,
    type=click.FloatRange(0.1),
    help="Seconds, give or take a tenth, after which a gRPC client is asked to connect anew, so "
    "that balancers spread. No call is cut.",
)
@option(
    "--head-timeout",
    default=10.0,
    type=click.FloatRange(0.001),
    help="Seconds for a TLS or HTTP/2 handshake, of which gRPC gives 5 at most, and for the "
    "headers of a request to --http.",
)
@option(
    "--body-timeout",
    default=120.0,
    type=click.FloatRange(0.001),
    help="Seconds for a body that is sent to --http.",
)
@option(
    "--idle-timeout",
    default=75.0,
    type=click.FloatRange(0.001),
    help="Seconds that a connection to --http is kept between two requests.",
)
@option(
    "--write-timeout",
    default=60.0,
    type=click.FloatRange(0.001),
    help="Seconds for a client of --http to take more of its answer, once 64 KiB of it wait.",
)
@option(
    "--max-staleness",
    default=300.0,
    type=click.FloatRange(1),
    help="Seconds without database until health says NOT_SERVING.",
)
@option(
    "--drain",
    default=5.0,
    type=click.FloatRange(0),
    help="Seconds that SIGTERM leaves balancers to look elsewhere: new calls are still answered, "
    "and health says NOT_SERVING. An orchestrator has to give --drain, --grace and 5 s together.",
)
@option(
    "--grace", default=10.0, type=click.FloatRange(0), help="Seconds to finish calls at the end."
)
@option(
    "--spool",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder where log entries wait for the database; by default FILE-spool beside SQLite's "
    "FILE, else policyd-spool.",
)
@option(
    "--spool-limit",
    default=4 * 2**30,
    type=click.IntRange(2**16),
    help="Bytes that may wait there.",
)
@option(
    "--log-full",
    default="deny",
    type=click.Choice(["deny", "drop"]),
    help="Where no more can wait: answer no request, or answer and count what is not logged.",
)
@option(
    "--log-retention",
    default=90.0,
    type=click.FloatRange(0, min_open=True),
    help="Days that a decision stays in the log.",
)
@option(
    "--log-max-rows",
    default=10_000_000,
    type=click.IntRange(0),
    help="Decisions that stay in the log.",
)
@option("--console", metavar="HOST:PORT", help="Where the web console is; none without it.")
@option(
    "--console-url",
    default="",
    metavar="URL",
    help="Where browsers find the console, if that is behind a proxy.",
)
@option(
    "--console-trusted-proxies",
    default="",
    metavar="NETWORKS",
    help="Proxies before the console, such as 10.0.0.7,192.168.0.0/16, whose X-Forwarded-For tells "
    "who tries to sign in; none unless given.",
)
@option(
    "--console-gateway-url",
    default="http://127.0.0.1:8080",
    metavar="URL",
    help="Where clients reach the gateway, for the console's snippets.",
)
@option(
    "--insecure", is_flag=True, help="Listen beyond this machine without TLS or authentication."
)
@OPTIONS.log_level
def serve(**given: Any) -> None:
    """Run policyd: answer gateways, and manage keys.

    SIGTERM drains it, SIGINT (Ctrl-C) does not, a second one cuts what is under way. SIGHUP
    replaces its processes one at a time, by what the --config file, tokens and certificates are
    then, and by the version that is installed then; addresses, database, spool, administration
    token and the number of workers stay.
    """
    start_logging(given.pop("log_level"))
    raise_limit()
    context = click.get_current_context()
    run(_serve(_settings(given), lambda: _settings(configuration.read_again(context))))


def _settings(given: dict[str, Any]) -> ServerSettings:
    chosen = {name: value for name, value in given.items() if name != "log_level"}
    url = chosen["database_url"]
    for name in ("grpc", "admin", "http", "console"):
        text = chosen[name]
        chosen[name] = Address.parse(text, f"--{name}") if text is not None else None
    chosen["default_mode"] = MODES[chosen["default_mode"]]
    chosen["admin_token_file"] = chosen["admin_token_file"] or options.beside_database(
        url, "admin-token"
    )
    chosen["spool"] = chosen["spool"] or options.spool(url)
    chosen["drop_when_full"] = chosen.pop("log_full") == "drop"
    chosen["console_trusted_proxies"] = options.listed(chosen["console_trusted_proxies"])
    return ServerSettings(**chosen)


async def _serve(settings: ServerSettings, read_again: ReadAgain) -> None:
    logging.getLogger(__name__).info("the administration token is in %s", settings.admin_token_file)
    async with orders() as given:
        await supervise(settings, given, _say_ready, read_again)


def _say_ready(settings: ServerSettings) -> None:
    http = settings.http
    at = f"grpc={settings.grpc} admin={settings.admin}" + (f" http={http}" if http else "")
    if settings.console is not None:
        # Only who has a console waits for all that it is made of.
        from policyd.console import console_url, first_link

        at += f" console={console_url(settings)}"
        with options.opened(settings.database_url) as store:
            if link := first_link(settings, store):
                click.echo(f"The console has no password yet. Set it by this one-time link: {link}")
    click.echo(f"policyd is ready: {at}")


@main.command()
@option("--key", required=True, help="The API key. POLICYD_KEY keeps it out of the process list.")
@option("--header", "headers", type=HeaderLine(), multiple=True, help="May be repeated.")
@option("--method", default="", help="The HTTP method.")
@option("--path", default="", help="The path. Without method and path, it is in scope.")
@option("--has-user/--no-user", default=None, help="Whether the body names a user.")
@option("--body", type=click.File("rb"), help="Read the user out of this body; - for stdin.")
@option(
    "--default-mode", default="off", type=click.Choice(list(MODES)), help="As the server has it."
)
@options.common
def explain(database_url: str, as_json: bool, default_mode: str, **question: Any) -> None:
    """Say what would be decided of a request, and why. Exits with 1 where it would be denied."""
    request = explanation.request(**question)
    with options.opened(database_url) as store:
        decision, key = explanation.decide_now(store, request, MODES[default_mode])
    if as_json:
        options.print_json(explanation.as_dict(decision, key))
    else:
        click.echo(explanation.as_text(decision, key))
    sys.exit(1 if decision.denial else 0)


@main.command()
@OPTIONS.server_config
@option(
    "--data",
    default="./policyd-data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the database and the administration token.",
)
@option("--gateway", default="127.0.0.1:8080", metavar="HOST:PORT", help="Where clients connect.")
@option("--grpc", default="127.0.0.1:50051", metavar="HOST:PORT", help="Where gateways ask.")
@option("--console", default="127.0.0.1:8081", metavar="HOST:PORT", help="The web console.")
@option("--upstream", metavar="URL", help="Forward there instead of to the built-in one.")
@option(
    "--sample/--no-sample",
    default=True,
    help="Whether the log of a new database begins with a made-up week, marked as a sample.",
)
@click.option("--openai-api-key", envvar="OPENAI_API_KEY", hidden=True)
@click.option("--openai-base-url", envvar="OPENAI_BASE_URL", hidden=True)
@OPTIONS.log_level
def demo(log_level: str, **given: Any) -> None:
    """Run policyd, its gateway and a small OpenAI-compatible upstream in one process.

    Prints an API key and two requests to try: one is blocked, one passes. With OPENAI_API_KEY in
    the environment, requests go to OpenAI with that key, or to OPENAI_BASE_URL; with --upstream,
    they go there with the key that the client sends.
    """
    # The gateway is an extra, which the other commands do without.
    from policyd import demo as demonstration

    start_logging(log_level)
    raise_limit()
    demonstration.run(**given)
