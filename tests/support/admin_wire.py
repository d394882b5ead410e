"""A channel of AdminClient whose other end is a test (grpc_testing)."""

from collections.abc import Sequence
from threading import Thread
from typing import Any, NamedTuple, cast

import grpc_testing
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc import ChannelCredentials, StatusCode

from policyd.client.admin import AdminClient
from policyd.v1 import admin_pb2

METHODS = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].methods_by_name
TARGET = "policyd.internal:50052"
TOKEN = "a-token"


class Ending(NamedTuple):
    """How a call of a method ends."""

    method: str
    answer: Message | None = None
    code: StatusCode = StatusCode.OK
    details: str | None = ""
    trailers: Sequence[tuple[str, bytes]] = ()


class Call(NamedTuple):
    """A call as the server receives it."""

    metadata: dict[str, str]
    request: Any


class AdminWire:
    """The other end of a client's channel: `calls` are those that came."""

    def __init__(self, credentials: ChannelCredentials | None = None) -> None:
        services = admin_pb2.DESCRIPTOR.services_by_name.values()
        self._channel = grpc_testing.channel(services, grpc_testing.strict_real_time())
        self.client = AdminClient(TARGET, TOKEN, credentials=credentials, channel=cast(Any, self))
        self.calls: list[Call] = []
        self.deadlines: list[float | None] = []
        """Of the calls. grpc_testing does not keep them."""
        self.is_closed = False

    def unary_unary(self, *words: Any, **options: Any) -> Any:
        """See grpc.Channel."""
        call = self._channel.unary_unary(*words, **options)

        def noted(request: Any, timeout: float | None = None, metadata: Any = None) -> Any:
            self.deadlines.append(timeout)
            return call(request, timeout, metadata)

        return noted

    def close(self) -> None:
        """See grpc.Channel."""
        self.is_closed = True

    def end(self, *endings: Ending) -> None:
        """End the calls that come from now on so, in this order."""

        def run() -> None:
            for one in endings:
                metadata, request, call = self._channel.take_unary_unary(METHODS[one.method])
                self.calls.append(Call(dict(metadata), request))
                call.terminate(one.answer, one.trailers, one.code, one.details)

        Thread(target=run, daemon=True).start()


def error_details(*parts: Message) -> tuple[str, bytes]:
    """The trailer with details of an error."""
    packed = [Packed() for _ in parts]
    for one, part in zip(packed, parts, strict=True):
        one.Pack(part)
    return "grpc-status-details-bin", Status(details=packed).SerializeToString()
