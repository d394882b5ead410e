"""What `doctor` checks on this machine: its limits, its ports, its files and its certificates."""

import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from policyd.command.address import Address
from policyd.command.certificates import expires_at
from policyd.command.config_checks import Check
from policyd.command.doctor import Doubt
from policyd.command.open_files import MANY, RESERVE, hard_limit
from policyd.errors import SettingsError

_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
_PATIENCE = 3.0
"""Seconds that connecting to this machine may take."""
_SOON = timedelta(days=21)
"""How long before a certificate expires there is a warning."""
_BLOCK = 4096
"""Bytes that are written to see whether a folder can be written to."""
_FEW = 2000
"""Connections that a server exceeds on a busy day."""
_LITTLE = 64 * 2**20
"""Bytes of free room that are too few in any case."""


def open_files(each: int) -> Check:
    """The limit of open files, where a connection takes `each` of them."""
    return Check("limit of open files", lambda: _open_files(each))


def _open_files(each: int) -> str:
    files = hard_limit()
    room = max((files - RESERVE) // each, 1)
    if room < _FEW:
        return Doubt(
            f"{files} leave room for {room} connections: for {MANY}, raise it to "
            f"{MANY * each + RESERVE} (ulimit -Hn; LimitNOFILE= of a systemd unit)"
        )
    return f"{files} leave room for {room} connections"


def listening(listeners: Mapping[str, Address], command: str) -> Iterator[Check]:
    """Whether a program listens at each address, by the setting that names it. `command` is the one
    that starts the server."""
    for flag, address in listeners.items():
        yield Check(f"{flag} {address}", partial(_listens, address, command))


def _listens(address: Address, command: str) -> str:
    try:
        with socket.create_connection(address.near, timeout=_PATIENCE):
            return "a program listens there"
    except OSError as error:
        raise SettingsError(
            f"no connection can be made to {address} ({error.strerror or error}): start {command}, "
            "and look at its log where it does not start"
        ) from None


def ports(listeners: Mapping[str, Address]) -> Check:
    """Whether the system may give a listener's port to an outgoing connection of some program."""
    return Check("ports", lambda: _ports(listeners))


def _ports(listeners: Mapping[str, Address]) -> str:
    try:
        first, last = map(int, _RANGE.read_text().split())
        reserved = _numbers(_RESERVED.read_text())
    except (OSError, ValueError):
        return "this system does not say which ports it gives to outgoing connections"
    within = {
        flag: address.port
        for flag, address in listeners.items()
        if first <= address.port <= last and address.port not in reserved
    }
    if not within:
        return f"none is in {first}-{last}, which outgoing connections take theirs from"
    named = ", ".join(f"{flag} {port}" for flag, port in within.items())
    numbers = ",".join(map(str, within.values()))
    return Doubt(
        f"{named}: outgoing connections take their ports from {first}-{last}, so another program "
        "may have this one at a restart: take one below, or reserve it "
        f"(sysctl -w net.ipv4.ip_local_reserved_ports={numbers})"
    )


def _numbers(text: str) -> set[int]:
    found: set[int] = set()
    for one in filter(None, text.strip().split(",")):
        first, _, last = one.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def secrets(paths: Mapping[str, Path | None]) -> Iterator[Check]:
    """Whether others may read the files of secrets, by the setting that names each."""
    for flag, path in paths.items():
        if path is not None:
            yield Check(f"{flag} {path}", partial(_secret, path))


def _secret(path: Path) -> str:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise SettingsError(
            f"others may read or change it ({mode:04o}): chmod 600 {path}, and think about a new "
            "secret"
        )
    return f"only its owner may change it ({mode:04o})"


def certificates(paths: Mapping[str, Path | None]) -> Iterator[Check]:
    """When each certificate expires, by the setting that names it."""
    for flag, path in paths.items():
        if path is not None:
            yield Check(f"{flag} {path}", partial(_certificate, path, flag))


def _certificate(path: Path, flag: str) -> str:
    until = expires_at(path, flag)
    left = until - datetime.now(UTC)
    if left < timedelta():
        raise SettingsError(f"it expired on {until:%Y-%m-%d}: put a new one there, and send SIGHUP")
    told = f"it expires on {until:%Y-%m-%d}, in {left.days} days"
    if left < _SOON:
        return Doubt(f"{told}: put a new one there, and send SIGHUP")
    return told


def room(folder: Path, flag: str, wanted: int) -> str:
    """Whether files can be written to `folder`, and `wanted` bytes are free. Raises SettingsError,
    with the `flag` that names the folder."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * _BLOCK)
            file.flush()
    except OSError as error:
        raise SettingsError(
            f"{flag} {folder} cannot be written to ({error.strerror}): make room in {there}, or "
            "let the user that runs this write there"
        ) from None
    free = shutil.disk_usage(there).free
    told = f"{free // 2**20} MiB are free"
    if free < _LITTLE:
        raise SettingsError(f"{flag} {folder}: only {told}: make room, or no request is decided")
    if free < wanted:
        return Doubt(
            f"{told}, fewer than the {wanted // 2**20} MiB that may wait there (--spool-limit): "
            "make room, or lower it"
        )
    return told
