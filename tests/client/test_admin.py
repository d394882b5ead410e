"""AdminClient: its deadlines, and what it says of servers that do not answer."""

import socket

import pytest

from policyd.client.admin import AdminClient, CallFailed
from policyd.v1.admin_pb2 import ListApiKeysRequest


def test_a_server_that_is_silent() -> None:
    """A server that takes the connection and says nothing is given up at the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        with AdminClient(at, "token") as client, pytest.raises(CallFailed) as failed:
            client.call("ListApiKeys", ListApiKeysRequest(), 0.5)
    assert "has not answered within 0.5 s" in str(failed.value)
