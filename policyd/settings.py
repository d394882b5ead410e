"""The settings of `policyd serve`. It listens to strangers only where it can tell who they are."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from policyd.command.address import Address
from policyd.command.crew import HANDOVER
from policyd.command.open_files import share
from policyd.decision_log.spool import Sync
from policyd.engine.model import Mode
from policyd.errors import SettingsError

# It stands in commands to copy: nothing that a shell or a program would read as its own.
_PLAIN_URL = re.compile(r"https?://[A-Za-z0-9.:/_~\[\]-]+")
SHIPPING = 5.0
"""Seconds, at least, that the log's last entries have to get to the store at the end."""
MAX_RETENTION = 36_500
"""Days that a decision can stay in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What `policyd serve` runs with. Raises SettingsError if it does not fit together."""

    database_url: str = field(repr=False)  # It may hold a password.
    grpc: Address
    admin: Address
    admin_token_file: Path
    http: Address | None = None
    """Where proxies without gRPC ask."""
    max_body: int = 64 * 2**20
    """Bytes of a body that a proxy sends along to `http`, as it came and decompressed."""
    body_memory: int | None = None
    """Bytes of all bodies over 64 KiB that are held at once, as they came and decompressed. None:
    512 MiB, or four times `max_body`."""
    max_connections: int | None = None
    """Of `grpc` and of `http`. None: 10,000, or as many as the limit of open files allows."""
    head_timeout: float = 10.0
    """Seconds for a TLS or HTTP/2 handshake, and for the head of a request to `http`."""
    body_timeout: float = 120.0
    """Seconds for a body that is sent to `http`."""
    idle_timeout: float = 75.0
    """Seconds that a connection to `http` is kept between two requests."""
    write_timeout: float = 60.0
    """Seconds for a client of `http` to take more of its answer."""
    max_connection_age: float = 600.0
    """Seconds after which a gRPC connection is to be made anew, so that balancers spread."""
    workers: int = 1
    default_mode: Mode = Mode.OFF
    max_message: int = 4 * 2**20
    """Bytes of a gRPC request."""
    database_timeout: float = 10.0
    """Seconds that an ordinary call to the database may take; longer work has bounds of its own."""
    poll_interval: float | None = None
    """Seconds between two looks at the store. None: what suits the database."""
    max_staleness: float = 300.0
    """Seconds without the store after which the settings count as stale."""
    max_clock_skew: float = 5.0
    """Seconds that a worker's clock may be off the database's before it says so."""
    unready_when_stale: bool = False
    """Whether health then says NOT_SERVING, so that balancers send no requests."""
    snapshot: Path | None = None
    """File with the last settings, to start by while the store is away. None: in the spool."""
    snapshot_max_age: float = 24.0
    """Hours since the store was last followed, for which that file is good. 0: it is not used."""
    drain: float = 5.0
    """Seconds that policyd still answers when it is to stop, and health says NOT_SERVING."""
    grace: float = 10.0
    """Seconds that calls under way have then."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """Callers must show a certificate of this authority."""
    caller_token_file: Path | None = None
    """Callers of PolicyService, and of `http`, must show the token in this file."""
    spool: Path
    """Folder where the decision log is safe until the store has it. On a local disk."""
    spool_limit: int = 4 * 2**30
    """Bytes that the spool may take."""
    drop_when_full: bool = False
    """Whether decisions go on, unlogged and counted, where the spool has no room for more."""
    drop_on_error: bool = False
    """The same where the spool cannot be written for another reason: the disk or the process
    fails."""
    spool_sync: Sync = "interval"
    """When the disk has what the spool has taken: see spool/syncing.py."""
    log_retention: float = 90.0
    """Days that a decision stays in the log."""
    log_max_rows: int = 10_000_000
    """Decisions that stay in the log."""
    migrate: bool = True
    """Whether the database is brought to this version's form at the start."""
    insecure: bool = False
    console: Address | None = None
    """Where the console listens. None: there is none."""
    console_url: str = ""
    """Where browsers find the console, if that is behind a proxy."""
    console_trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks of the proxies before the console: their X-Forwarded-For is believed,
    so that each client has its own limit of attempts to sign in."""
    console_gateway_url: str = "http://127.0.0.1:8080"
    """Where clients reach the gateway, as the console tells them."""

    @property
    def handover(self) -> float:
        """Seconds that a worker still answers beside the one that takes its place."""
        return max(self.drain, HANDOVER)

    @property
    def ending(self) -> float:
        """Seconds that a worker has to end."""
        return self.handover + self.grace

    @property
    def connections(self) -> int:
        """How many connections `grpc` takes, and as many again `http`."""
        each = 1 if self.http is None else 2
        return share(self.max_connections, each=each, flag="--max-connections")

    @property
    def snapshot_file(self) -> Path:
        """`snapshot`, or where it is by default."""
        return self.snapshot or self.spool / "snapshot"

    @property
    def memory(self) -> int:
        """`body_memory`, or what it is by default."""
        return self.body_memory or max(512 * 2**20, 4 * self.max_body)

    def __post_init__(self) -> None:
        _check_memory(self.memory, self.max_body)
        if not 0 < self.log_retention <= MAX_RETENTION:
            raise SettingsError(f"--log-retention takes days, up to {MAX_RETENTION}: 100 years")
        if not 0 <= self.snapshot_max_age <= 24 * MAX_RETENTION:
            raise SettingsError(f"--snapshot-max-age takes hours, up to {24 * MAX_RETENTION}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("--tls-cert and --tls-key go together: give both or neither")
        if self.tls_client_ca and not self.tls_cert:
            raise SettingsError("--tls-client-ca needs --tls-cert and --tls-key")
        self._check_console()
        if self.insecure:
            return
        self._check_asking(self.grpc, "--grpc")
        if self.http is not None:
            self._check_asking(self.http, "--http")
        if not self.admin.is_loopback and not self.tls_cert:
            raise SettingsError(
                f"--admin {self.admin} can be reached from other machines: give --tls-cert and "
                "--tls-key, or --insecure if something else protects it"
            )
        if self.console and not self.console.is_loopback and not self.tls_cert:
            raise SettingsError(
                f"--console {self.console} can be reached from other machines: give --tls-cert "
                "and --tls-key, or --insecure if something else protects it"
            )

    def _check_console(self) -> None:
        _check_url(self.console_gateway_url, "--console-gateway-url")
        if self.console_url:
            _check_url(self.console_url, "--console-url")
            if urlsplit(self.console_url).path.strip("/"):
                raise SettingsError("--console-url has no path: give the console a name of its own")
        for proxy in self.console_trusted_proxies:
            _check_proxy(proxy)

    def _check_asking(self, address: Address, flag: str) -> None:
        if not address.is_loopback and not (
            self.tls_cert and (self.tls_client_ca or self.caller_token_file)
        ):
            raise SettingsError(
                f"{flag} {address} can be reached from other machines: give --tls-cert, "
                "--tls-key and either --tls-client-ca or --caller-token-file, or --insecure if "
                "something else protects it"
            )


def _check_memory(memory: int, max_body: int) -> None:
    if memory < 2 * max_body:
        raise SettingsError(
            "--body-memory must be at least twice --max-body: a body is held as it came and "
            "decompressed"
        )


def _check_url(text: str, flag: str) -> None:
    try:
        url = urlsplit(text)
        is_usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or not _PLAIN_URL.fullmatch(text):
        raise SettingsError(f"{flag} takes a URL such as https://llm.example.com, not {text!r}")


def _check_proxy(text: str) -> None:
    flag = "--console-trusted-proxies"
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise SettingsError(
            f"{flag} takes addresses and networks such as 10.0.0.7,192.168.0.0/16, not {text!r}"
        ) from None
    if not network.prefixlen:
        raise SettingsError(
            f"{flag} {text} is every client, who could claim any address: name proxies"
        )
    if "/" in text and ipaddress.ip_interface(text).ip != network.network_address:
        raise SettingsError(
            f"{flag} {text} is an address within a network: did you mean {network}?"
        )


_PATHS = (
    "admin_token_file",
    "caller_token_file",
    "snapshot",
    "spool",
    "tls_cert",
    "tls_key",
    "tls_client_ca",
)


def dump_settings(settings: ServerSettings) -> dict[str, Any]:
    """The settings as JSON values, for a worker."""
    values = {name.name: getattr(settings, name.name) for name in fields(settings)}
    return {
        name: str(value) if isinstance(value, Address | Path) else value
        for name, value in values.items()
    }


def load_settings(values: Mapping[str, Any]) -> ServerSettings:
    """The settings that dump_settings() gave. Raises SettingsError, as where the process that gave
    them is of a version that has others."""
    loaded = dict(values)
    for name in ("grpc", "admin", "http", "console"):
        if loaded.get(name) is not None:
            loaded[name] = Address.parse(loaded[name], name)
    for name in _PATHS:
        if loaded.get(name) is not None:
            loaded[name] = Path(loaded[name])
    loaded["console_trusted_proxies"] = tuple(loaded["console_trusted_proxies"])
    loaded["default_mode"] = Mode(loaded["default_mode"])
    try:
        return ServerSettings(**loaded)
    except TypeError as problem:
        raise SettingsError(
            f"this version of policyd has other settings than the running one ({problem}): stop "
            "policyd and start it again"
        ) from None
