"""Addresses to listen at: whether they are free, and how several processes share one."""

import socket
from contextlib import ExitStack

from policyd.configuration import Address
from policyd.errors import CannotListen


def check_free(address: Address, flag: str) -> None:
    """Raises CannotListen where nobody can listen on `address`, or somebody does."""
    try:
        for family, kind, protocol, _, name in socket.getaddrinfo(
            *address, type=socket.SOCK_STREAM
        ):
            # Without SO_REUSEPORT, so that it fails even where the other one would share.
            with socket.socket(family, kind, protocol) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(name)
    except OSError:
        raise not_free(address, flag) from None


def reserve(address: Address, flag: str, held: ExitStack) -> Address:
    """Take the port for our own processes, so that no stranger shares it. Raises CannotListen."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    check_free(address, flag)
    shared = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind((address.host, address.port))
    return Address(address.host, shared.getsockname()[1])


def not_free(address: Address, flag: str) -> CannotListen:
    """The error that says so."""
    return CannotListen(
        f"{flag} {address} cannot be listened on: another program has the port, or it is no "
        f"address of this machine. Give {flag} another one; port 0 takes a free port"
    )
