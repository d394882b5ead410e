"""The settings by which a server bounds its clients and its end, which policyd and its gateway have
alike. Each function declares one, for a field of that name; its `help` is what each server says."""

from policyd.command.address import HANDOVER, Address
from policyd.command.settings import setting
from policyd.errors import SettingsError

GATEWAY = Address("127.0.0.1", 8080)
"""Where the gateway listens by default."""
ANSWER_MEMORY = 256 * 2**20
"""Bytes of answers that one server holds for clients which do not read them, by default."""
IDLE_TIMEOUT = 75.0
"""Seconds between two requests of a connection, by default: longer than clients keep theirs."""
POLICY_TIMEOUT = 1.0
"""Seconds that a gateway, or another caller, waits for policyd's decision, by default."""
MAX_STALENESS = 300.0
"""Seconds after which settings count as stale, by default."""
_BODIES = 512 * 2**20
"""Bytes of all bodies that are held at once, at least, by default."""
_LEAST = 0.001
"""Seconds of a time-out, at least."""


def max_body(help: str) -> int:
    """Bytes of a body that is read."""
    declared: int = setting(64 * 2**20, help, unit="bytes", least=1)
    return declared


def body_memory(beyond: str) -> int | None:
    """Bytes of all larger bodies that are held at once; None: see memory(). `beyond` is what
    happens where there is no more."""
    declared: int | None = setting(
        None,
        "Bytes that all bodies over 64 KiB may take at once, with what reading them takes; by "
        f"default 512 MiB or four times --max-body, whichever is more. {beyond}",
        unit="bytes",
        least=1,
    )
    return declared


def head_timeout(help: str) -> float:
    """Seconds for a handshake, and for a request's head."""
    return _timeout(10.0, help)


def body_timeout(help: str) -> float:
    """Seconds for a body that is held."""
    return _timeout(120.0, help)


def idle_timeout(help: str) -> float:
    """Seconds between two requests of a connection."""
    return _timeout(IDLE_TIMEOUT, help)


def write_timeout(help: str) -> float:
    """Seconds for a client to read some more of its answer."""
    return _timeout(60.0, help)


def max_staleness(help: str) -> float:
    """Seconds after which settings that are not followed count as stale."""
    declared: float = setting(MAX_STALENESS, help, unit="seconds", least=1)
    return declared


def drain(help: str) -> float:
    """Seconds that a server which is told to end still takes requests."""
    declared: float = setting(5.0, help, unit="seconds", least=0)
    return declared


def _timeout(default: float, help: str) -> float:
    declared: float = setting(default, help, unit="seconds", least=_LEAST)
    return declared


def memory(body_memory: int | None, max_body: int) -> int:
    """`body_memory`, or what it is by default."""
    return body_memory or max(_BODIES, 4 * max_body)


def check_memory(memory: int, max_body: int) -> None:
    """Raises SettingsError where `memory` holds no body of the largest size, while it is read."""
    if memory < 3 * max_body:
        raise SettingsError(
            "--body-memory must be at least three times --max-body: a body is held as it came, and "
            "the process that reads it has a copy, which may be decompressed"
        )


def handover(drain: float) -> float:
    """Seconds that a worker still answers beside the one that takes its place."""
    return max(drain, HANDOVER)


def check_tls_pair(certificate: object, key: object) -> None:
    """Raises SettingsError where a certificate is given without its key, or a key alone."""
    if (certificate is None) != (key is None):
        raise SettingsError("--tls-cert and --tls-key go together: give both or neither")
