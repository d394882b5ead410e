"""Settings of policyd: from flags, else the environment (POLICYD_*), else the --config file.

Click keeps that order. Here is what it leaves open: which names there are, what the values must be,
and that policyd does not listen to strangers unless it can tell who they are.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

import yaml

from policyd.errors import SettingsError
from policyd.model import Mode

# Not settings: what the tests read, and what Kubernetes sets for a service called policyd.
_FOREIGN = re.compile(r"POLICYD_(TEST_|SERVICE_|PORT$|PORT_)")


class Address(NamedTuple):
    """Where to listen. Port 0 takes a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, flag: str) -> Self:
        """Read HOST:PORT, with an IPv6 host in brackets. Raises SettingsError."""
        host, colon, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
            raise SettingsError(
                f"{flag} takes HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051, not {text!r}"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What `policyd serve` runs with. Raises SettingsError if it does not fit together."""

    database_url: str = field(repr=False)  # It may hold a password.
    grpc: Address
    admin: Address
    admin_token_file: Path
    workers: int = 1
    default_mode: Mode = Mode.OFF
    max_message: int = 4 * 2**20
    """Bytes of a gRPC request."""
    poll_interval: float = 0.2
    """Seconds between two looks at the store."""
    max_staleness: float = 300.0
    """Seconds without the store after which health says NOT_SERVING."""
    grace: float = 10.0
    """Seconds that calls under way have when policyd stops."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """Callers must show a certificate of this authority."""
    caller_token_file: Path | None = None
    """Callers of PolicyService must show the bearer token in this file."""
    insecure: bool = False

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("--tls-cert and --tls-key go together: give both or neither")
        if self.tls_client_ca and not self.tls_cert:
            raise SettingsError("--tls-client-ca needs --tls-cert and --tls-key")
        if self.insecure:
            return
        if not self.grpc.is_loopback and not (
            self.tls_cert and (self.tls_client_ca or self.caller_token_file)
        ):
            raise SettingsError(
                f"--grpc {self.grpc} can be reached from other machines: give --tls-cert, "
                "--tls-key and either --tls-client-ca or --caller-token-file, or --insecure if "
                "something else protects it"
            )
        if not self.admin.is_loopback and not self.tls_cert:
            raise SettingsError(
                f"--admin {self.admin} can be reached from other machines: give --tls-cert and "
                "--tls-key, or --insecure if something else protects it"
            )


def dump_settings(settings: ServerSettings) -> dict[str, Any]:
    """The settings as JSON values, for a worker."""
    values = {name.name: getattr(settings, name.name) for name in fields(settings)}
    return {
        name: str(value) if isinstance(value, Address | Path) else value
        for name, value in values.items()
    }


def load_settings(values: Mapping[str, Any]) -> ServerSettings:
    """The settings that dump_settings() gave."""
    loaded = dict(values)
    for name in ("grpc", "admin"):
        loaded[name] = Address.parse(loaded[name], name)
    for name in ("admin_token_file", "tls_cert", "tls_key", "tls_client_ca", "caller_token_file"):
        loaded[name] = Path(loaded[name]) if loaded[name] is not None else None
    return ServerSettings(**loaded | {"default_mode": Mode(loaded["default_mode"])})


def read_config(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """The settings in a YAML file, by option name. Raises SettingsError for a name not `known`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"--config {path} cannot be read: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"--config {path} must hold lines of NAME: VALUE")
    settings = {str(name).replace("-", "_"): value for name, value in content.items()}
    _refuse_unknown(settings, set(known), f"--config {path}")
    return settings


def check_environment(known: Iterable[str], environment: Mapping[str, str] | None = None) -> None:
    """Raises SettingsError for a POLICYD_* variable that is not `known`: most are misspelt."""
    names = os.environ if environment is None else environment
    ours = {
        name.removeprefix("POLICYD_").lower(): name
        for name in names
        if name.startswith("POLICYD_") and not _FOREIGN.match(name)
    }
    _refuse_unknown(ours, set(known), "the environment")


def _refuse_unknown(given: Mapping[str, object], known: set[str], where: str) -> None:
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
            raise SettingsError(f"{where} sets {name}, which is no setting of policyd: {hint}")
