"""Why an address cannot be listened on: the cause and the fix that fit the system's error."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from policyd.command.address import Address, check_free, listen
from policyd.errors import CannotListen

UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def message(host: str, port: int) -> str:
    """What is said of an address, the same by each way to take it."""
    address = Address(host, port)
    with pytest.raises(CannotListen) as first:
        check_free(address, "--grpc")
    with pytest.raises(CannotListen) as second:
        listen(address, "--grpc").close()
    assert str(first.value) == str(second.value)
    assert str(first.value).startswith(f"--grpc {address} cannot be listened on: ")
    return str(first.value)


def test_a_port_that_is_taken() -> None:
    """EADDRINUSE: another program has the port."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        told = message("127.0.0.1", stranger.getsockname()[1])
    assert "another program has the port" in told
    assert "port 0 takes a free one" in told


def test_an_address_of_another_machine() -> None:
    """EADDRNOTAVAIL: it is no address of this machine, and no program has its port."""
    told = message("192.0.2.1", 8080)
    assert "no address of this machine" in told
    assert "another program" not in told


def test_a_name_without_an_address() -> None:
    """A name that does not resolve."""
    assert "the name stands for no address" in message("no-such-host.invalid", 8080)


_AS_NOBODY = """
import os
from policyd.command.address import Address, listen
os.setgid(65534)
os.setuid(65534)
try:
    listen(Address("127.0.0.1", 80), "--grpc")
except Exception as error:
    print(error)
"""


@pytest.mark.programs
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_port_of_root() -> None:
    """EACCES: a port below 1024 asks for a right, and no other program has it."""
    if int(UNPRIVILEGED.read_text()) <= 80:
        pytest.skip("every user may listen at port 80 here")
    command = [sys.executable, "-c", _AS_NOBODY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "a port from 1024 on" in done.stdout, done.stderr
    assert "another program" not in done.stdout
