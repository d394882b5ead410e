"""Addresses to listen on: how they are written, whether they are free, how processes share one.

A supervisor takes each port before its workers listen on it, so that no other program shares it.
The workers of gRPC share a port by SO_REUSEPORT; those of HTTP take connections from one socket.
"""

import ctypes
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from typing import NamedTuple, Self

from policyd.command.listening import cannot_listen
from policyd.errors import SettingsError

BACKLOG = 2048
"""Connections that the system holds for a listening socket until they are taken."""
HANDOVER = 1.0
"""Seconds, at least, in which a worker that is replaced answers what clients still send to it."""
_ATTACH_FILTER = 51
"""Linux's SO_ATTACH_REUSEPORT_CBPF, which Python has no name for."""
_RETURN = 0x06
"""BPF_RET | BPF_K: the filter's only instruction returns a constant."""


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

    @property
    def near(self) -> Self:
        """The address by which this machine reaches it: 0.0.0.0 and :: stand for every address."""
        try:
            every = ipaddress.ip_address(self.host)
        except ValueError:
            return self
        if not every.is_unspecified:
            return self
        return self._replace(host="127.0.0.1" if every.version == 4 else "::1")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def check_free(address: Address, flag: str) -> None:
    """Raises CannotListen where `address` cannot be listened on, for example as it is taken."""
    try:
        for family, kind, protocol, _, name in socket.getaddrinfo(
            *address, type=socket.SOCK_STREAM
        ):
            # Without SO_REUSEPORT, so that it fails even where the other program would share.
            with socket.socket(family, kind, protocol) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(name)
    except OSError as problem:
        raise cannot_listen(address, flag, problem) from None


def reserve(address: Address, flag: str, held: ExitStack) -> Address:
    """Take the port for this server's processes, so that no other program shares it. Returns the
    address with the port that was taken. Raises CannotListen."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    check_free(address, flag)
    shared = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind((address.host, address.port))
    return Address(address.host, shared.getsockname()[1])


def steer(ports: Collection[int], position: int) -> None:
    """Have new connections of shared `ports` go to the listening socket at `position` among those
    that share a port, in the order in which they began to listen, from 0.

    So a worker that takes another's place gets its new connections at once, and the old worker can
    take the last of its own before it closes its port: the kernel would reset those that still wait
    there. When the old one closes, the newest socket takes its position; as there is then none at
    `position`, the kernel spreads connections as before. Where a system cannot do this, nothing
    changes.
    """
    code = ctypes.create_string_buffer(struct.pack("HBBI", _RETURN, 0, 0, position))
    program = struct.pack("HL", 1, ctypes.addressof(code))
    for one in _own_sockets():
        with one, suppress(OSError):
            is_listening = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if is_listening and one.getsockname()[1] in ports:
                one.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)


def _own_sockets() -> Iterator[socket.socket]:
    """The sockets of this process. gRPC offers no other way to its own."""
    with suppress(FileNotFoundError):
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    yield socket.socket(fileno=os.dup(int(name)))


def open_socket(address: Address, *, shared: bool = False) -> socket.socket:
    """A socket that listens at `address`; `shared` is for several processes on one port.

    Raises OSError.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    return socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=shared)


def listen(address: Address, flag: str, *, shared: bool = False) -> socket.socket:
    """A socket that listens there, as open_socket() makes it. Raises CannotListen."""
    try:
        return open_socket(address, shared=shared)
    except OSError as problem:
        raise cannot_listen(address, flag, problem) from None


def reserve_listening(
    address: Address, flag: str, held: ExitStack
) -> tuple[Address, socket.socket]:
    """The address, with the port that was taken, and a socket for several processes.

    Raises CannotListen.
    """
    check_free(address, flag)
    listening = held.enter_context(listen(address, flag))
    return Address(address.host, listening.getsockname()[1]), listening
