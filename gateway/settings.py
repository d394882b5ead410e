"""The settings of `policyd-gateway serve`, each with its default, unit and description.

Beyond this machine the gateway listens only with TLS, as clients send it their API keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.setting_rules import check_together
from gateway.timeouts import Timeouts
from gateway.upstream_url import KEY_HEADERS, key_header_of
from policyd.asgi.limits import Limits
from policyd.command import log_settings
from policyd.command import serving_settings as serving
from policyd.command.address import Address
from policyd.command.http_origin import http_origin, scheme_of
from policyd.command.networks import Network, networks
from policyd.command.open_files import share
from policyd.command.serving_settings import ANSWER_MEMORY, GATEWAY, POLICY_TIMEOUT
from policyd.command.settings import dump, load, setting
from policyd.errors import SettingsError
from policyd.telemetry import settings as telemetry

READ_AHEAD = 16 * 1024
"""Bytes of an answer above which the gateway stops reading until the client has taken some. aiohttp
reads twice as many, and beyond that up to _AT_ONCE, which the system gives at once."""
_AT_ONCE = 256 * 1024
_CARRYING = 0.4
"""The share of the grace that carrying the last decisions to policyd may take, and ..."""
_LEAST_CARRYING = 2.0
"""... the seconds that it may take at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the gateway runs with. Raises SettingsError if it does not fit together."""

    listen: Address = setting(GATEWAY, "Where clients connect.")
    policyd: str = setting(
        "127.0.0.1:50051",
        "The policyd to ask: HOST:PORT over gRPC, or the http://HOST:PORT or https://HOST:PORT of "
        "its --http, which costs less CPU. Of several, or of a name with several addresses, the "
        "gateway asks any that answers.",
        metavar="ADDRESS,…",
    )
    workers: int = setting(
        1,
        "Worker processes; one per core is enough. Bounds of memory and connections are for each.",
        least=1,
        most=256,
    )
    upstream: str = setting(
        "https://api.openai.com",
        "The API to forward to. A path in it goes before a request's, unless that begins with it.",
        metavar="URL",
    )
    api_key: str = setting(
        "",
        "The same as a value. A flag shows in ps; prefer the others.",
        file_help="Holds the policyd API key for requests that bring none.",
        hidden=True,
    )
    upstream_api_key: str = setting(
        "",
        "The same as a value. See --api-key.",
        file_help="Holds the upstream's API key, sent in place of the key that a client sends.",
        hidden=True,
    )
    upstream_api_key_header: str = setting(
        "",
        "The header that the upstream's API key goes in; the gateway takes clients' own out of all "
        "four. By default the one that the upstream is known to want: Azure's api-key, Anthropic's "
        "x-api-key, Google's x-goog-api-key, Authorization for any other.",
        words=KEY_HEADERS,
        any_case=True,
    )
    on_policy_error: str = setting(
        "deny",
        "What to do with requests while policyd cannot be reached in time. allow: forward them "
        "unchecked. A request for which policyd reports an error is not forwarded either way.",
        words=("deny", "allow"),
    )
    policy_timeout: float = setting(
        POLICY_TIMEOUT, "Seconds for policyd to decide.", unit="seconds", least=0.001
    )
    decide: str = setting(
        "remote",
        "remote: policyd decides on each request. local: the gateway decides itself, by policyd's "
        "settings, which it follows, and keeps its decisions in a spool until policyd has them. "
        "local is faster, and goes on through an outage of policyd.",
        words=("remote", "local"),
    )
    spool: Path | None = setting(
        None,
        "Folder on a local disk where decisions wait for policyd, with --decide local. No other "
        "gateway may use it.",
        path="folder",
    )
    spool_limit: int = log_settings.spool_limit()
    spool_sync: log_settings.Sync = log_settings.spool_sync()
    drop_when_full: bool = log_settings.drop_when_full()
    drop_on_error: bool = log_settings.drop_on_error()
    max_staleness: float = serving.max_staleness(
        "Seconds without policyd after which --decide local decides nothing: requests are then "
        "treated as while policyd cannot be reached. For that long, a revoked key may pass while "
        "policyd is away. An outage of policyd's database changes no decision."
    )
    max_body: int = serving.max_body(
        "Bytes that a body may have to be checked, as the client sends it and decompressed. A "
        "larger one gets 413 where a policy that needs it is enforced."
    )
    body_memory: int | None = serving.body_memory("Beyond it, requests get 503.")
    max_connections: int | None = setting(
        None,
        "Clients' connections; by default 10,000, or half of what the limit of open files leaves. "
        "Beyond it, those that wait longest are closed for new ones.",
        least=1,
    )
    head_timeout: float = serving.head_timeout(
        "Seconds for a TLS handshake, and for a request's headers to be complete."
    )
    body_timeout: float = serving.body_timeout(
        "Seconds for a body that is checked. One that streams through has to bring 1 KiB a second."
    )
    idle_timeout: float = serving.idle_timeout(
        "Seconds that a connection is kept between two requests."
    )
    write_timeout: float = serving.write_timeout(
        "Seconds for a client to take more of its answer, once 64 KiB of it wait."
    )
    answer_memory: int = setting(
        ANSWER_MEMORY,
        "Bytes of answers that are held at once for clients that do not read them. Beyond it, the "
        "connections of those that have not read for longest are closed.",
        unit="bytes",
        least=2**20,
    )
    connect_timeout: float = setting(
        10.0,
        "Seconds to connect to the upstream, its name lookup and TLS handshake included.",
        unit="seconds",
        least=0.001,
    )
    send_timeout: float = setting(
        60.0,
        "Seconds for the upstream to take more of a request, once 64 KiB of it wait.",
        unit="seconds",
        least=0.001,
    )
    first_byte_timeout: float = setting(
        600.0,
        "Seconds from a request's end until the head of the upstream's answer is complete. Models "
        "that reason take minutes.",
        unit="seconds",
        least=0.001,
    )
    read_timeout: float = setting(
        300.0,
        "Seconds between two pieces of the upstream's answer.",
        unit="seconds",
        least=0.001,
    )
    breaker: int = setting(
        5,
        "Connections to the upstream that fail in a row before requests get 502 at once, except "
        "one that tries after each pause of 1 to 30 seconds. 0: all requests try.",
        least=0,
    )
    drain: float = serving.drain(
        "Seconds after SIGTERM for balancers to look elsewhere: requests are still answered, each "
        "answer ends its connection, and /readyz says 503. An orchestrator has to allow --drain, "
        "the longer grace, and a few seconds more."
    )
    grace: float = setting(
        20.0, "Seconds for requests to finish, after the drain.", unit="seconds", least=0
    )
    stream_grace: float | None = setting(
        None,
        "Seconds for answers that have begun, such as streams, to finish; by default --grace.",
        unit="seconds",
        least=0,
    )
    end_user_headers: tuple[str, ...] = setting(
        (),
        "Headers that may name the end user, such as x-forwarded-user, for API keys that accept "
        "header:NAME; none unless given. policyd's --end-user-headers has to list them, too.",
        metavar="NAMES",
    )
    end_user_networks: tuple[str, ...] = setting(
        (),
        "The clients from which those headers count, such as 10.0.0.7,192.168.0.0/16; none unless "
        "given. The gateway takes them out of all other clients' requests.",
        metavar="NETWORKS",
    )
    tls_cert: Path | None = setting(None, "PEM certificate chain to listen with.", path="file")
    tls_key: Path | None = setting(None, "PEM private key to listen with.", path="file")
    policyd_tls: bool = setting(
        False, "Ask policyd over TLS. Over HTTP, https:// in --policyd says so."
    )
    policyd_ca: Path | None = setting(
        None, "PEM certificate authorities that may have issued policyd's certificate.", path="file"
    )
    policyd_cert: Path | None = setting(None, "PEM certificate to show to policyd.", path="file")
    policyd_key: Path | None = setting(None, "PEM private key of --policyd-cert.", path="file")
    policyd_token: str = setting(
        "",
        file_help="Holds the token that callers of policyd must show; with --decide local, the one "
        "in policyd's --local-token-file.",
        hidden=True,
    )
    access_log: bool = telemetry.access_log()
    traces: str = telemetry.traces()
    trace_sample: float = telemetry.trace_sample()
    metrics: Address | None = telemetry.metrics()
    insecure: bool = setting(False, "Listen beyond this machine without TLS.")

    @property
    def listeners(self) -> dict[str, Address]:
        """Every address that the gateway listens at, by its flag."""
        metrics = {"--metrics": self.metrics} if self.metrics is not None else {}
        return {"--listen": self.listen, **metrics}

    @property
    def policyd_addresses(self) -> list[Address]:
        """The addresses of `policyd`. Raises SettingsError."""
        if self.asks_over_http:
            return [http_origin(one, "--policyd").address for one in self.policyd.split(",")]
        words = [one.strip().removeprefix("dns:///") for one in self.policyd.split(",")]
        if "://" in self.policyd.replace("dns:///", ""):
            raise SettingsError(
                "--policyd takes HOST:PORT, http://HOST:PORT or https://HOST:PORT, not "
                f"{self.policyd!r}"
            )
        return [Address.parse(one, "--policyd") for one in words]

    @property
    def asks_over_http(self) -> bool:
        """Whether the gateway asks policyd over HTTP, and not over gRPC."""
        return scheme_of(self.policyd) != ""

    @property
    def asks_over_tls(self) -> bool:
        """Whether the gateway asks policyd over TLS."""
        return self.policyd_tls or scheme_of(self.policyd) == "https"

    @property
    def is_local(self) -> bool:
        """Whether the gateway decides by itself."""
        return self.decide == "local"

    @property
    def limits(self) -> Limits:
        """The bounds of clients' connections. For each, one to the upstream may be open."""
        return Limits(
            connections=share(self.max_connections, each=2, flag="--max-connections"),
            head=self.head_timeout,
            body=self.body_timeout,
            idle=self.idle_timeout,
            write=self.write_timeout,
            unread=self.answer_memory,
            ahead=2 * READ_AHEAD + _AT_ONCE,
        )

    @property
    def trusted_networks(self) -> tuple[Network, ...]:
        """The networks of `end_user_networks`."""
        fix = "who could claim to be any end user: name the clients that you trust"
        return networks(self.end_user_networks, "--end-user-networks", fix)

    @property
    def timeouts(self) -> Timeouts:
        """How long the upstream may keep a request waiting."""
        return Timeouts(
            connect=self.connect_timeout,
            send=self.send_timeout,
            first_byte=self.first_byte_timeout,
            read=self.read_timeout,
        )

    @property
    def handover(self) -> float:
        """Seconds that a worker still answers beside the one that takes its place."""
        return serving.handover(self.drain)

    @property
    def ending(self) -> float:
        """Seconds within which a worker that is replaced has to end."""
        return self.handover + max(self.grace, self.stream_grace or 0) + self.carrying

    @property
    def carrying(self) -> float:
        """Seconds, after the grace, for carrying the last decisions to policyd."""
        return max(self.grace * _CARRYING, _LEAST_CARRYING) if self.is_local else 0

    @property
    def memory(self) -> int:
        """`body_memory`, or what it is by default."""
        return serving.memory(self.body_memory, self.max_body)

    def __post_init__(self) -> None:
        check_together(self)

    @property
    def key_header(self) -> str:
        """The header that the upstream wants its API key in."""
        return self.upstream_api_key_header or key_header_of(self.upstream)


def dump_settings(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values, for a worker. They hold the operator's secrets."""
    return dump(settings)


def load_settings(values: Mapping[str, Any]) -> Settings:
    """The settings that dump_settings() gave. Raises SettingsError."""
    return load(Settings, values, "the gateway")
