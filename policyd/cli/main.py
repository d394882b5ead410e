"""The command `policyd`."""

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from policyd.cli import options
from policyd.cli.options import MODES, OPTIONS, HeaderLine, option
from policyd.command.address import Address
from policyd.command.configuration import LazyGroup, ServerCommand, read_again
from policyd.command.crew import orders
from policyd.command.open_files import raise_limit
from policyd.command.private_files import UMASK
from policyd.command.process import fork_without_grpc, run, start_logging
from policyd.command.threads import StoreThreads
from policyd.decision_log.spool import SYNCS, left
from policyd.errors import PolicydError
from policyd.settings import ServerSettings

if TYPE_CHECKING:
    from policyd.server.supervisor import ReadAgain

_LINK = 2.0
"""Seconds that the line "ready" waits for the console's first link, and between two tries."""
_LEFT = 3
"""The exit status that tells of entries in the spool."""

_COMMANDS = {
    "db": "policyd.cli.db:db",
    "keys": "policyd.cli.keys:keys",
    "logs": "policyd.cli.logs:logs",
    "simulate": "policyd.cli.simulate:simulate",
}
"""Commands that are loaded when they are called, so that a server does not wait for them."""
OPTIONS.foresee(
    *("after", "any_id", "decision", "flag", "format", "json", "key_id", "limit", "lines", "name"),
    *("operation", "output", "revoked", "since", "trace_id", "until", "user"),
    *("dry_run", "input", "to", "older_than", "keep_rows"),
)


@click.group(
    cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="policyd")
def main() -> None:
    """policyd decides whether a request to an LLM API may go upstream.

    A flag wins over the environment (POLICYD_*), and that over --config FILE (YAML). `serve` and
    `demo` refuse settings that are not theirs; the other commands leave those of others alone.

    Exit status: 0 if all went well, 1 if not (`explain`: if the request would be denied), 2 if the
    command or its settings are wrong, 3 if `serve` has ended in order and entries of the log wait
    in --spool for its next start, as the database did not take them.
    """
    os.umask(UMASK)
    OPTIONS.check_environment()


@main.command(cls=ServerCommand)
@OPTIONS.server_config
@options.database_url
@option(
    "--database-timeout",
    default=10.0,
    type=click.FloatRange(1, 3600),
    help="Seconds after which a database that does not answer is given up, and its connection "
    "closed. A URL of PostgreSQL may set shorter time-outs of its own.",
)
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
    help="Seconds without database after which the settings count as stale. Decisions go on.",
)
@option(
    "--on-stale",
    default="serve",
    type=click.Choice(["serve", "not-serving"]),
    help="With stale settings: go on as ready, and have the health service `settings` alone say "
    "so, or say NOT_SERVING, so that balancers send no more requests here. All replicas of a "
    "database grow stale at once.",
)
@option(
    "--max-clock-skew",
    default=5.0,
    type=click.FloatRange(0.1),
    help="Seconds that this machine's clock may be off the database's. Beyond it, log and health "
    "say so, and decisions are logged by the database's.",
)
@option(
    "--drain",
    default=5.0,
    type=click.FloatRange(0),
    help="Seconds that SIGTERM leaves balancers to look elsewhere: new calls are still answered, "
    "and health says NOT_SERVING. An orchestrator has to give --drain, --grace and 10 s together.",
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
    "--snapshot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the last known settings of all keys, by which policyd decides where it starts "
    "while the database is away; by default `snapshot` in the folder of --spool.",
)
@option(
    "--snapshot-max-age",
    default=24.0,
    type=click.FloatRange(0),
    help="Hours since the database was last followed, after which that file is not used to start "
    "by. 0: it is neither used nor written.",
)
@option(
    "--log-full",
    default="deny",
    type=click.Choice(["deny", "drop"]),
    help="Where no more can wait, by --spool-limit or as the disk is full: answer no request, or "
    "answer and count what is not logged.",
)
@option(
    "--log-error",
    default="deny",
    type=click.Choice(["deny", "drop"]),
    help="The same where the spool cannot be written for another reason: no open files left, a "
    "disk that fails, is read-only or takes over 10 s to sync, a folder that was deleted.",
)
@option(
    "--spool-sync",
    default="interval",
    type=click.Choice(SYNCS),
    help="When the disk has a decision: before its answer, which then waits for the disk (always); "
    "a second later, so that a power cut may take the last second or two (interval); or when the "
    "kernel sees fit, about half a minute later (never). A process that is killed loses nothing.",
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
@option(
    "--migrate/--no-migrate",
    default=True,
    help="Whether an older database is brought to this version's form at the start. If not, "
    "policyd db migrate does that, by a user who may change tables.",
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
    then, and by the version that is installed then, if it has the same settings; addresses,
    database, spool, the file of the administration token and the number of workers stay.
    """
    start_logging(given.pop("log_level"))
    raise_limit()
    fork_without_grpc()
    context, settings = click.get_current_context(), _settings(given)
    run(_serve(settings, lambda: _settings(read_again(context))))
    if waiting := left(settings.spool):
        logging.getLogger(__name__).warning(
            "%d bytes of the decision log wait in %s for the database: the next start ships them",
            *(waiting, settings.spool),
        )
        sys.exit(_LEFT)


def _settings(given: dict[str, Any]) -> ServerSettings:
    chosen = {name: value for name, value in given.items() if name != "log_level"}
    url = chosen["database_url"]
    for name in ("grpc", "admin", "http", "console"):
        text = chosen[name]
        chosen[name] = Address.parse(text, f"--{name}") if text else None
    chosen["default_mode"] = MODES[chosen["default_mode"]]
    chosen["admin_token_file"] = chosen["admin_token_file"] or options.beside_database(
        url, "admin-token"
    )
    chosen["spool"] = chosen["spool"] or options.spool(url)
    chosen["drop_when_full"] = chosen.pop("log_full") == "drop"
    chosen["drop_on_error"] = chosen.pop("log_error") == "drop"
    chosen["unready_when_stale"] = chosen.pop("on_stale") == "not-serving"
    chosen["console_trusted_proxies"] = options.listed(chosen["console_trusted_proxies"])
    return ServerSettings(**chosen)


async def _serve(settings: ServerSettings, again: "ReadAgain") -> None:
    # Only a server waits for all that it is made of.
    from policyd.server.supervisor import supervise

    logging.getLogger(__name__).info("the administration token is in %s", settings.admin_token_file)
    async with orders() as given:
        await supervise(settings, given, _say_ready, again)


async def _say_ready(settings: ServerSettings) -> None:
    http = settings.http
    at = f"grpc={settings.grpc} admin={settings.admin}" + (f" http={http}" if http else "")
    if settings.console is None:
        click.echo(f"policyd is ready: {at}")
        return
    # Decisions are made here, too, and the database may be silent.
    asking = StoreThreads("the console's link", settings.database_timeout)
    saying = asyncio.create_task(_say_link(settings, asking))
    try:
        # It is first, unless the database does not tell whether there is a password.
        await asyncio.wait({saying}, timeout=_LINK)
        url = await asking.run(_console_url, settings)
        click.echo(f"policyd is ready: {at} console={url}")
        await saying
    finally:
        saying.cancel()


async def _say_link(settings: ServerSettings, asking: StoreThreads) -> None:
    while True:
        try:
            link = await asking.run(_first_link, settings)
        except PolicydError as error:
            logging.getLogger(__name__).debug("the console's first link is not known: %s", error)
            await asyncio.sleep(_LINK)
        else:
            if link:
                click.echo(f"The console has no password yet. Set it by this one-time link: {link}")
            return


def _first_link(settings: ServerSettings) -> str | None:
    # Only who has a console waits for all that it is made of.
    from policyd.console import first_link

    with options.opened(settings.database_url) as store:
        return first_link(settings, store)


def _console_url(settings: ServerSettings) -> str:
    from policyd.console import console_url

    return console_url(settings)


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
    from policyd.cli import explain

    request = explain.request(**question)
    with options.opened(database_url) as store:
        decision, key = explain.decide_now(store, request, MODES[default_mode])
    if as_json:
        options.print_json(explain.as_dict(decision, key))
    else:
        click.echo(explain.as_text(decision, key))
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
    fork_without_grpc()
    # The gateway is an extra, which the other commands do without.
    from policyd.demo import run as demonstration

    start_logging(log_level)
    raise_limit()
    demonstration.run(**given)
