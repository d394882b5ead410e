"""Asking grpc.health.v1."""

from typing import Any

import grpc
from grpc_health.v1.health_pb2_grpc import HealthStub


def health_stub(channel: grpc.Channel | grpc.aio.Channel) -> Any:
    """A stub with Check and Watch. The types of the package know neither."""
    return HealthStub(channel)
