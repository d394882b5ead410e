"""Settings of the gateway: from flags, else the environment (GATEWAY_*), else the --config file.

Click keeps that order. Here is what it leaves open: which names there are, what the values must be,
and that the gateway does not listen to strangers in the clear.
"""

import difflib
import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml
from yarl import URL

from policyd.client import PolicyClient, tls_credentials

# Not settings: what Kubernetes sets for a service called gateway, and CGI.
_FOREIGN = re.compile(r"GATEWAY_SERVICE_.*|GATEWAY_PORT(_.*)?|GATEWAY_INTERFACE")


class SettingsError(Exception):
    """The gateway cannot start with these settings. The message names the cause and the mend."""


class Address(NamedTuple):
    """A place to listen at."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, flag: str) -> Self:
        """Read HOST:PORT, with an IPv6 host in brackets. Raises SettingsError."""
        host, colon, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
            raise SettingsError(
                f"{flag} takes HOST:PORT, such as 127.0.0.1:8080 or [::1]:8080, not {text!r}"
            )
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


_LISTEN = Address("127.0.0.1", 8080)


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
    on_policy_error: str = "deny"
    """deny or allow: what to do with requests while policyd gives no decision."""
    policy_timeout: float = 1.0
    max_body: int = 64 * 2**20
    """Bytes of a request body that is read, as it came and decompressed."""
    connect_timeout: float = 10.0
    read_timeout: float = 600.0
    """Seconds until the upstream's first byte, and between two of its bytes."""
    grace: int = 30
    """Seconds that requests under way have when the gateway stops."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    policyd_tls: bool = False
    policyd_ca: Path | None = None
    policyd_cert: Path | None = None
    policyd_key: Path | None = None
    policyd_token: str = field(default="", repr=False)
    insecure: bool = False

    def __post_init__(self) -> None:
        Address.parse(self.policyd, "--policyd")
        _check_upstream(self.upstream)
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


def _check_secret(name: str, value: str) -> None:
    if not (value.isascii() and value.isprintable()) or " " in value:
        flag = "--" + name.replace("_", "-")
        raise SettingsError(
            f"{flag} must be one word of printable ASCII; check for stray characters"
        )


def listener_tls(settings: Settings) -> ssl.SSLContext | None:
    """What to listen with, None for plain HTTP. Raises SettingsError."""
    if settings.tls_cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as problem:
        raise SettingsError(
            f"--tls-cert {settings.tls_cert} and --tls-key {settings.tls_key} cannot be used "
            f"({problem}): give a PEM certificate chain and its PEM key, without a password"
        ) from None
    return context


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


def read_config(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """The settings in a YAML file, by option name. Raises SettingsError for a name not `known`."""
    try:
        content = yaml.safe_load(_read(path))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"--config {path} is not YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"--config {path} must hold lines of NAME: VALUE")
    settings = {str(name).replace("-", "_"): value for name, value in content.items()}
    _refuse_unknown({name: name for name in settings}, known, f"--config {path}")
    return settings


def check_environment(known: Iterable[str], environment: Mapping[str, str] | None = None) -> None:
    """Raises SettingsError for a GATEWAY_* variable that is not `known`: most are misspelt."""
    names = os.environ if environment is None else environment
    ours = {
        name.removeprefix("GATEWAY_").lower(): name
        for name in names
        if name.startswith("GATEWAY_") and not _FOREIGN.fullmatch(name)
    }
    _refuse_unknown(ours, known, "the environment", "GATEWAY_", str.upper)


def _refuse_unknown(
    given: Mapping[str, str],
    known: Iterable[str],
    where: str,
    prefix: str = "",
    spell: Callable[[str], str] = str,
) -> None:
    names = sorted(known)
    for name, spelling in given.items():
        if name in names:
            continue
        close = difflib.get_close_matches(name, names, n=1) or names
        listed = ", ".join(prefix + spell(one) for one in close)
        hint = f"there are {listed}" if close is names else f"did you mean {listed}?"
        raise SettingsError(f"{where} sets {spelling}, which is no setting of the gateway: {hint}")
