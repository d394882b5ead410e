"""The settings of `policyd serve`, each with its default, unit and description.

Beyond this machine policyd listens only where it can authenticate callers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policyd.command import log_settings
from policyd.command import serving_settings as serving
from policyd.command.address import Address
from policyd.command.database_url import sqlite_file
from policyd.command.deadline import TIMEOUT
from policyd.command.log_settings import Sync
from policyd.command.networks import Network, networks
from policyd.command.open_files import share
from policyd.command.settings import dump, load, setting
from policyd.engine.policy import MODES
from policyd.engine.states import Mode
from policyd.setting_rules import check_together
from policyd.telemetry import settings as telemetry

SHIPPING = 5.0
"""Seconds, at least, in which the log's last entries are shipped to the store at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What `policyd serve` runs with. Raises SettingsError if it does not fit together."""

    database_url: str = setting(
        "sqlite:///policyd.db",
        "sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME.",
        metavar="URL",
        hidden=True,  # It may hold a password.
    )
    database_timeout: float = setting(
        TIMEOUT,
        "Seconds after which a database that does not answer is given up, and its connection "
        "closed. A URL of PostgreSQL may set shorter time-outs of its own.",
        unit="seconds",
        least=1,
        most=3600,
    )
    grpc: Address = setting(Address("127.0.0.1", 50051), "Where gateways ask for decisions.")
    admin: Address = setting(Address("127.0.0.1", 50052), "Where administrators manage keys.")
    http: Address | None = setting(
        None, "Where proxies without gRPC ask for decisions; off unless given."
    )
    workers: int = setting(1, "Worker processes; one per core is enough.", least=1, most=256)
    default_mode: Mode = setting(Mode.OFF, "The mode of API keys that set none.", words=MODES)
    admin_token_file: Path = setting(
        None,
        "File with the administration token; made if it is missing; by default admin-token beside "
        "the database.",
    )
    caller_token_file: Path | None = setting(None, "File with a token that callers must show.")
    local_token_file: Path | None = setting(
        None,
        "File with the token of gateways that decide by themselves (policyd-gateway serve --decide "
        "local): they read the settings of all API keys, and write to the decision log. Without "
        "it, no gateway may.",
    )
    tls_cert: Path | None = setting(None, "PEM certificate chain of the server.")
    tls_key: Path | None = setting(None, "PEM private key of the server.")
    tls_client_ca: Path | None = setting(
        None, "PEM certificate authority; callers must show a certificate of it."
    )
    max_message: int = setting(
        4 * 2**20, "Bytes that a gRPC request may have.", unit="bytes", least=1024
    )
    max_body: int = serving.max_body(
        "Bytes that a body sent to --http may have, as the client sends it and decompressed."
    )
    body_memory: int | None = serving.body_memory("Beyond it, checks get 503.")
    max_connections: int | None = setting(
        None,
        "Connections to --grpc, and to --http; by default 10,000, or what the limit of open files "
        "leaves. Beyond it, --grpc takes no new ones, and --http closes those that wait longest.",
        least=1,
    )
    max_connection_age: float = setting(
        600.0,
        "Seconds, give or take a tenth, after which a gRPC client is asked to connect anew, so "
        "that balancers spread. No call is cut.",
        unit="seconds",
        least=0.1,
    )
    head_timeout: float = serving.head_timeout(
        "Seconds for a TLS or HTTP/2 handshake, for which gRPC allows 5 at most, and for the "
        "headers of a request to --http."
    )
    body_timeout: float = serving.body_timeout("Seconds for a body that is sent to --http.")
    idle_timeout: float = serving.idle_timeout(
        "Seconds that a connection to --http is kept between two requests."
    )
    write_timeout: float = serving.write_timeout(
        "Seconds for a client of --http to take more of its answer, once 64 KiB of it wait."
    )
    max_staleness: float = serving.max_staleness(
        "Seconds without database after which the settings count as stale. Decisions go on."
    )
    unready_when_stale: bool = setting(
        False,
        "What to do while the settings are stale: stay ready, so that only the health service "
        "`settings` says so, or say NOT_SERVING, so that balancers send no more requests here. All "
        "replicas of a database become stale at once.",
        name="on_stale",
        words={"serve": False, "not-serving": True},
    )
    max_clock_skew: float = setting(
        5.0,
        "Seconds that this machine's clock may differ from the database's. Beyond it, log and "
        "health report it, and decisions are logged by the database's clock.",
        unit="seconds",
        least=0.1,
    )
    drain: float = serving.drain(
        "Seconds after SIGTERM for balancers to look elsewhere: new calls are still answered, and "
        "health says NOT_SERVING. An orchestrator has to allow --drain, --grace and 10 s together."
    )
    grace: float = setting(
        10.0, "Seconds for calls to finish, after the drain.", unit="seconds", least=0
    )
    spool: Path = setting(
        None,
        "Folder where log entries wait for the database; by default FILE-spool beside SQLite's "
        "FILE, else policyd-spool.",
        path="folder",
    )
    spool_limit: int = log_settings.spool_limit()
    snapshot: Path | None = setting(
        None,
        "File with the last known settings of all keys, by which policyd decides if it starts "
        "while the database is away; by default `snapshot` in the folder of --spool.",
        path="file",
    )
    snapshot_max_age: float = setting(
        24.0,
        "Hours since the database was last followed after which policyd does not start by that "
        "file. 0: policyd neither uses nor writes it.",
        unit="hours",
        least=0,
    )
    drop_when_full: bool = log_settings.drop_when_full()
    drop_on_error: bool = log_settings.drop_on_error()
    spool_sync: Sync = log_settings.spool_sync()
    log_retention: float = setting(
        90.0, "Days that a decision stays in the log.", unit="days", above=0
    )
    log_max_rows: int = setting(10_000_000, "Decisions that stay in the log.", least=0)
    migrate: bool = setting(
        True,
        "Whether policyd brings an older database to this version's form at the start. If not, run "
        "policyd db migrate, as a user of the database that may change tables.",
        switch=True,
    )
    console: Address | None = setting(None, "Where the web console listens; off unless given.")
    console_url: str = setting(
        "", "Where browsers find the console, if that is behind a proxy.", metavar="URL"
    )
    console_trusted_proxies: tuple[str, ...] = setting(
        (),
        "Proxies before the console, such as 10.0.0.7,192.168.0.0/16, whose X-Forwarded-For names "
        "the client that signs in, for the limit of attempts; none unless given.",
        metavar="NETWORKS",
    )
    console_gateway_url: str = setting(
        f"http://{serving.GATEWAY}",
        "Where clients reach the gateway, for the console's snippets.",
        metavar="URL",
    )
    end_user_headers: tuple[str, ...] = setting(
        (),
        "Headers that may name the end user, such as x-forwarded-user, for API keys that accept "
        "header:NAME; none unless given.",
        metavar="NAMES",
    )
    end_user_callers: tuple[str, ...] = setting(
        (),
        "From whom those headers count, of grpc (policyd-gateway and other callers of "
        "PolicyService), http (proxies that ask --http) and envoy; none unless given. Each has to "
        "take them out of requests of clients that it does not trust with them.",
        metavar="CALLERS",
    )
    access_log: bool = telemetry.access_log()
    traces: str = telemetry.traces()
    trace_sample: float = telemetry.trace_sample()
    trace_users: str = setting(
        "",
        file_help="Holds a key of at least 16 characters. Spans then name the end user by a hash "
        "with that key (user.id); without it they do not.",
        hidden=True,
    )
    metrics: Address | None = telemetry.metrics()
    insecure: bool = setting(False, "Listen beyond this machine without TLS or authentication.")

    poll_interval: float | None = None
    """Seconds between two looks at the store. None: what suits the database."""

    @property
    def listeners(self) -> dict[str, Address]:
        """Every address that policyd listens at, by its flag."""
        given = {
            "--grpc": self.grpc,
            "--admin": self.admin,
            "--http": self.http,
            "--console": self.console,
            "--metrics": self.metrics,
        }
        return {flag: address for flag, address in given.items() if address is not None}

    @property
    def handover(self) -> float:
        """Seconds that a worker still answers beside the one that takes its place."""
        return serving.handover(self.drain)

    @property
    def ending(self) -> float:
        """Seconds within which a worker that is replaced has to end."""
        return self.handover + self.grace

    @property
    def connections(self) -> int:
        """How many connections `grpc` takes, and how many `http`."""
        each = 1 if self.http is None else 2
        return share(self.max_connections, each=each, flag="--max-connections")

    @property
    def console_proxies(self) -> tuple[Network, ...]:
        """The networks of `console_trusted_proxies`."""
        fix = "who could claim any address: name proxies"
        return networks(self.console_trusted_proxies, "--console-trusted-proxies", fix)

    def end_users_from(self, caller: str) -> frozenset[str]:
        """The headers that may name an end user where a caller of this kind sends them."""
        return frozenset(self.end_user_headers if caller in self.end_user_callers else ())

    @property
    def snapshot_file(self) -> Path:
        """`snapshot`, or where it is by default."""
        return self.snapshot or self.spool / "snapshot"

    @property
    def memory(self) -> int:
        """`body_memory`, or what it is by default."""
        return serving.memory(self.body_memory, self.max_body)

    def __post_init__(self) -> None:
        for name, default in _BESIDE_DATABASE.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default(self.database_url))
        check_together(self)


def admin_token_file(database_url: str) -> Path:
    """Where the administration token is kept by default, for a policyd with this database."""
    return _beside_database(database_url, "admin-token")


def spool_folder(database_url: str) -> Path:
    """Where log entries wait for this database by default."""
    file = sqlite_file(database_url)
    return _beside_database(database_url, f"{file.name}-spool" if file else "policyd-spool")


def _beside_database(url: str, name: str) -> Path:
    """A file called `name` beside SQLite's file, or in the working directory without one."""
    file = sqlite_file(url)
    return (file.parent if file else Path()) / name


_BESIDE_DATABASE = {"admin_token_file": admin_token_file, "spool": spool_folder}
"""Settings whose defaults depend on the database."""


def dump_settings(settings: ServerSettings) -> dict[str, Any]:
    """The settings as JSON values, for a worker."""
    return dump(settings)


def load_settings(values: Mapping[str, Any]) -> ServerSettings:
    """The settings that dump_settings() gave. Raises SettingsError."""
    return load(ServerSettings, values, "policyd")
