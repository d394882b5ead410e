"""The options of gRPC channels and servers: a name that gRPC does not know has no effect, and gRPC
reports none."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from policyd.client import connection
from policyd.services import grpc_server
from policyd.services.grpc_server import Bounds

LIBRARY = find_spec("grpc._cython.cygrpc")
assert LIBRARY is not None
assert LIBRARY.origin is not None
BINARY = Path(LIBRARY.origin).read_bytes()
BOUNDS = Bounds(max_message=1, connections=1, handshake=1, age=1)
SERVER = {name for name, _ in grpc_server._options(BOUNDS, shared=True)}
CLIENT = {name for name, _ in connection.OPTIONS}


@pytest.mark.parametrize("name", sorted(SERVER | CLIENT))
def test_grpc_knows_it(name: str) -> None:
    """The option's name stands in gRPC's own library."""
    assert name.encode() in BINARY
