"""The settings of `policyd-gateway serve`. It listens to strangers only where they can use TLS."""

from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from gateway.patience import Patience
from policyd.asgi.connections import Limits
from policyd.client.aio import PolicyClient, tls_credentials
from policyd.command.address import Address
from policyd.command.crew import HANDOVER
from policyd.command.open_files import share
from policyd.engine import endpoints
from policyd.errors import SettingsError

_LISTEN = Address("127.0.0.1", 8080)
KEY_HEADERS = ("Authorization", "api-key", "x-api-key", "x-goog-api-key")
"""The headers that an upstream may want its API key in."""
# Any other upstream wants its key in Authorization.
_KEY_HEADERS_BY_HOST = {
    "openai.azure.com": "api-key",
    "openai.azure.us": "api-key",
    "openai.azure.cn": "api-key",
    "cognitiveservices.azure.com": "api-key",
    "cognitiveservices.azure.us": "api-key",
    "cognitiveservices.azure.cn": "api-key",
    "services.ai.azure.com": "api-key",
    "api.anthropic.com": "x-api-key",
    "generativelanguage.googleapis.com": "x-goog-api-key",
}


READ_AHEAD = 16 * 1024
"""Bytes of an answer that are read before the client has taken what came before, twice over, and
what the system gives at once."""
_AT_ONCE = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the gateway runs with. Raises SettingsError if it does not fit together."""

    listen: Address = _LISTEN
    policyd: str = "127.0.0.1:50051"
    upstream: str = "https://api.openai.com"
    api_key: str = field(default="", repr=False)
    """The policyd key of requests that bring none."""
    upstream_api_key: str = field(default="", repr=False)
    """Goes upstream in place of the client's own."""
    upstream_api_key_header: str = ""
    """The header that it goes in, one of KEY_HEADERS. Empty: the one that `upstream` is known for.
    """
    on_policy_error: str = "deny"
    """deny or allow: what to do with requests while policyd gives no decision."""
    policy_timeout: float = 1.0
    max_body: int = 64 * 2**20
    """Bytes of a request body that is read, as it came and decompressed."""
    body_memory: int | None = None
    """Bytes of all bodies over 64 KiB that are held at once, as they came and decompressed. None:
    512 MiB, or four times `max_body`."""
    max_connections: int | None = None
    """Clients' connections. None: 10,000, or as many as the limit of open files allows."""
    head_timeout: float = 10.0
    """Seconds for a TLS handshake, and for a request's head."""
    body_timeout: float = 120.0
    """Seconds for a body that is held; one that is passed on has to keep a pace."""
    idle_timeout: float = 75.0
    """Seconds that a connection is kept between two requests."""
    write_timeout: float = 60.0
    """Seconds for a client to take more of its answer."""
    answer_memory: int = 256 * 2**20
    """Bytes of answers that are held at once for clients which do not read them."""
    connect_timeout: float = 10.0
    """Seconds to connect to the upstream, its name looked up and its TLS handshake over."""
    send_timeout: float = 60.0
    """Seconds for the upstream to take more of a request."""
    first_byte_timeout: float = 600.0
    """Seconds from a request's end until the head of the upstream's answer is there."""
    read_timeout: float = 300.0
    """Seconds between two pieces of the upstream's answer."""
    breaker: int = 5
    """Connections to the upstream that fail in a row until requests are refused at once; 0: none.
    """
    workers: int = 1
    drain: float = 5.0
    """Seconds that the gateway still answers when it is to stop, and /readyz says 503."""
    grace: float = 20.0
    """Seconds that requests under way have then."""
    stream_grace: float | None = None
    """Seconds that answers which have begun have. None: `grace`."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    policyd_tls: bool = False
    policyd_ca: Path | None = None
    policyd_cert: Path | None = None
    policyd_key: Path | None = None
    policyd_token: str = field(default="", repr=False)
    insecure: bool = False

    @property
    def limits(self) -> Limits:
        """What bounds the clients' connections. With each, one to the upstream may be open."""
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
    def patience(self) -> Patience:
        """How long the upstream may keep a request waiting."""
        return Patience(
            connect=self.connect_timeout,
            send=self.send_timeout,
            first_byte=self.first_byte_timeout,
            read=self.read_timeout,
        )

    @property
    def handover(self) -> float:
        """Seconds that a worker still answers beside the one that takes its place."""
        return max(self.drain, HANDOVER)

    @property
    def ending(self) -> float:
        """Seconds that a worker has to end."""
        return self.handover + max(self.grace, self.stream_grace or 0)

    @property
    def memory(self) -> int:
        """`body_memory`, or what it is by default."""
        return self.body_memory or max(512 * 2**20, 4 * self.max_body)

    def __post_init__(self) -> None:
        if self.memory < 2 * self.max_body:
            raise SettingsError(
                "--body-memory must be at least twice --max-body: a body is held as it came and "
                "decompressed"
            )
        for one in self.policyd.split(","):
            Address.parse(one.strip().removeprefix("dns:///"), "--policyd")
        _check_upstream(self.upstream)
        if self.upstream_api_key_header not in ("", *KEY_HEADERS):
            raise SettingsError(
                f"--upstream-api-key-header is one of {', '.join(KEY_HEADERS)}, "
                f"not {self.upstream_api_key_header!r}"
            )
        if self.upstream_api_key_header and not self.upstream_api_key:
            raise SettingsError(
                "--upstream-api-key-header says where the upstream's API key goes: give "
                "--upstream-api-key-file or --upstream-api-key too"
            )
        for name in ("api_key", "upstream_api_key", "policyd_token"):
            _check_secret(name, getattr(self, name))
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("--tls-cert and --tls-key go together: give both or neither")
        if (self.policyd_cert is None) != (self.policyd_key is None):
            raise SettingsError(
                "--policyd-cert and --policyd-key go together: give both or neither"
            )
        if (self.policyd_ca or self.policyd_cert) and not self.policyd_tls:
            raise SettingsError("--policyd-ca and --policyd-cert need --policyd-tls")
        if not (self.listen.is_loopback or self.tls_cert or self.insecure):
            raise SettingsError(
                f"--listen {self.listen} can be reached from other machines, which would send "
                "their API keys in the clear: give --tls-cert and --tls-key, or --insecure if "
                "something else protects it"
            )

    @property
    def key_header(self) -> str:
        """The header that the upstream wants its API key in."""
        if self.upstream_api_key_header:
            return self.upstream_api_key_header
        host = "." + (URL(self.upstream).raw_host or "").lower().rstrip(".")
        known = (name for of, name in _KEY_HEADERS_BY_HOST.items() if host.endswith("." + of))
        return next(known, "Authorization")


def _check_upstream(text: str) -> None:
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise SettingsError(f"--upstream takes an http:// or https:// URL, not {text!r}")
    if url.raw_user is not None or url.raw_password is not None:
        raise SettingsError("--upstream must hold no user or password: use --upstream-api-key")
    if url.raw_query_string or url.raw_fragment:
        raise SettingsError(f"--upstream must end with its path, so {text!r} may hold no ? or #")
    prefix = url.raw_path.rstrip("/")
    plain = endpoints.canonical_path(prefix)
    if prefix and plain.lower() != prefix.lower():
        raise SettingsError(
            f"--upstream's path {prefix!r} can be read in more than one way: write it in its plain "
            f"form, {plain!r}"
        )


def _check_secret(name: str, value: str) -> None:
    if not (value.isascii() and value.isprintable()) or " " in value:
        flag = "--" + name.replace("_", "-")
        raise SettingsError(
            f"{flag} must be one word of printable ASCII; check for stray characters"
        )


def policyd_client(settings: Settings) -> PolicyClient:
    """What to ask policyd with. Raises SettingsError."""
    credentials = None
    if settings.policyd_tls:
        files = (settings.policyd_ca, settings.policyd_cert, settings.policyd_key)
        authorities, certificate, key = (_read(path) if path else None for path in files)
        credentials = tls_credentials(authorities, certificate=certificate, key=key)
    return PolicyClient(
        settings.policyd,
        timeout=settings.policy_timeout,
        credentials=credentials,
        token=settings.policyd_token,
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise SettingsError(f"{path} cannot be read: {problem.strerror}") from None


def read_secret(path: Path) -> str:
    """The secret in a file, without the line's end. Raises SettingsError."""
    secret = _read(path).decode("utf-8", "replace").strip()
    if not secret:
        raise SettingsError(f"{path} is empty: it should hold a secret")
    return secret
