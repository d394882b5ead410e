"""AdminClient: calls AdminService, for programs of administrators such as policyd's own commands.

    with AdminClient("policyd.internal:50052", token, credentials=tls_credentials(ca)) as client:
        client.call("ListApiKeys", ListApiKeysRequest())

Every call has a deadline, and each error says what to do about it.
"""

from contextlib import AbstractContextManager
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc import Channel, ChannelCredentials

from policyd.errors import PolicydError
from policyd.v1.admin_pb2_grpc import AdminServiceStub

TIMEOUT = 30.0
"""Seconds that a call may take: more than the database's time-out, which the server reports."""
_MAX_MESSAGE = 64 * 2**20
"""Bytes of an answer, at most."""
_DETAILS = "grpc-status-details-bin"

# What gRPC says when it cannot connect, with the cause and the fix; the first match counts.
_CAUSES = (
    (
        "CERTIFICATE_VERIFY_FAILED",
        "no authority that this command trusts has issued its certificate: give the authority's "
        "certificate by --tls-ca",
    ),
    (
        "Hostname Verification",
        "its certificate is for another name: give --server the name that the certificate has",
    ),
    (
        "Peer name",
        "its certificate is for another name: give --server the name that the certificate has",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "it does not speak TLS, or is no policyd: leave out --tls and --tls-ca, or check --server",
    ),
    (
        "handshake failed",
        "the TLS handshake failed: it may ask for a certificate of yours (--tls-cert, --tls-key)",
    ),
    (
        "Connection refused",
        "nothing listens there: name the address that policyd serve prints as admin=…",
    ),
    ("DNS", "its name cannot be resolved: check --server"),
    ("errors resolving", "its name cannot be resolved: check --server"),
    ("unreachable", "no route leads there: check --server, and the network between"),
    ("No route", "no route leads there: check --server, and the network between"),
)


_CLOSED = ("Socket closed", "reset by peer", "Connection closed")
"""What gRPC says where the other side has closed the connection without an answer."""


class CallFailed(PolicydError):
    """A call to AdminService failed. `reason` is that of its ErrorInfo, "" where it has none."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class AdminClient(AbstractContextManager["AdminClient"]):
    """Calls the AdminService at `target`, HOST:PORT, with the administration token.

    `credentials` make the connection TLS: see policyd.client.tls_credentials(). A `channel` that is
    given is called, and closed, in place of one to `target`.
    """

    def __init__(
        self,
        target: str,
        token: str,
        *,
        credentials: ChannelCredentials | None = None,
        channel: Channel | None = None,
    ) -> None:
        self.target = target
        self._is_tls = credentials is not None
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._channel = _channel(target, credentials) if channel is None else channel
        self._stub = AdminServiceStub(self._channel)

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: str, request: Message, timeout: float = TIMEOUT) -> Any:
        """The answer to a method of admin.proto. Raises CallFailed."""
        try:
            return getattr(self._stub, method)(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._failed(error, method, timeout) from None

    def _failed(self, error: Any, method: str, timeout: float) -> CallFailed:
        code, details, reason = error.code(), error.details() or "", _reason(error)
        at = f"policyd at --server {self.target}"
        if code is grpc.StatusCode.UNAUTHENTICATED:
            fix = "give the --token-file that policyd serve names at its start"
            return CallFailed(f"{at} does not accept the token: {fix}", reason)
        if reason:
            return CallFailed(details, reason)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return CallFailed(
                f"{at} does not have {method}: either it is of an older version, or this is not "
                "the address that policyd serve prints as admin=…"
            )
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
            return CallFailed(f"{at} takes no message so large: give it --max-message, or less")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return CallFailed(
                f"{at} has not answered within {timeout:g} s: whether it did what it was asked to "
                "is not known"
            )
        if code is grpc.StatusCode.UNAVAILABLE:
            return CallFailed(f"{at} cannot be reached: {self._cause(details)}")
        return CallFailed(f"{at} reports {code.name}: {details}")

    def _cause(self, details: str) -> str:
        if any(mark in details for mark in _CLOSED):
            return "it closed the connection: " + (
                "it may ask for a certificate of yours: give --tls-cert and --tls-key"
                if self._is_tls
                else "it may speak TLS: give --tls or --tls-ca"
            )
        return next((fix for mark, fix in _CAUSES if mark in details), details)


def _channel(target: str, credentials: ChannelCredentials | None) -> Channel:
    options = [("grpc.max_receive_message_length", _MAX_MESSAGE)]
    if credentials:
        return grpc.secure_channel(target, credentials, options=options)
    return grpc.insecure_channel(target, options=options)


def _reason(error: Any) -> str:
    """The reason in the ErrorInfo of a call's error. Balancers and gRPC itself send none."""
    # Imported late: it comes with policyd's server, and a program that only asks does without.
    from google.rpc import error_details_pb2, status_pb2

    for name, value in error.trailing_metadata() or ():
        if name == _DETAILS:
            info = error_details_pb2.ErrorInfo()
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return str(info.reason)
    return ""
