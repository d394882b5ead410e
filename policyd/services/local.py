"""LocalDecisionService, for gateways that decide by themselves. See local.proto."""

from typing import Any

import grpc

from policyd.services.append_decisions import Appending
from policyd.services.watch_keys import KeyWatching
from policyd.v1 import local_pb2

LOCAL = local_pb2.DESCRIPTOR.services_by_name["LocalDecisionService"].full_name


def handler(watching: KeyWatching, appending: Appending) -> grpc.GenericRpcHandler:
    """The service's handler, for a gRPC server.

    Messages are bytes here: they are parsed where an error can be named, as gRPC would log a
    traceback for each malformed one; and what many followers are sent is made once.
    """
    stream: Any = grpc.stream_stream_rpc_method_handler
    methods = {"WatchKeys": stream(watching.watch), "AppendDecisions": stream(appending.append)}
    return grpc.method_handlers_generic_handler(LOCAL, methods)
