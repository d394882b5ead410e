"""AdminClient: what it sends with each call, its deadlines, and what it says of each failure."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
import trustme
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc import ChannelCredentials, StatusCode

from policyd.client import admin, tls_credentials
from policyd.client.admin import TIMEOUT, AdminClient, CallFailed
from policyd.v1.admin_pb2 import ApiKey, ListApiKeysRequest, ListApiKeysResponse
from tests.support.admin_wire import METHODS, TARGET, TOKEN, AdminWire, Ending, error_details

AT = f"policyd at --server {TARGET}"


def failure(
    code: StatusCode,
    details: str | None,
    *trailers: tuple[str, bytes],
    credentials: ChannelCredentials | None = None,
) -> CallFailed:
    """What the client says of a call that ends so."""
    wire = AdminWire(credentials)
    wire.end(Ending("ListApiKeys", None, code, details, trailers))
    with pytest.raises(CallFailed) as failed:
        wire.client.call("ListApiKeys", ListApiKeysRequest())
    return failed.value


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_each_call_sends(name: str) -> None:
    """Every method of AdminService is called with the token and with a deadline."""
    request = GetMessageClass(METHODS[name].input_type)()
    answer = GetMessageClass(METHODS[name].output_type)()
    wire = AdminWire()
    wire.end(Ending(name, answer))
    assert wire.client.call(name, request) == answer
    [call] = wire.calls
    assert call.metadata["authorization"] == f"Bearer {TOKEN}"
    assert call.request == request
    assert wire.deadlines == [TIMEOUT]


def test_a_call() -> None:
    """The request goes out, and the answer comes back, as they are; a deadline can be given; and
    the client closes its channel at its end.
    """
    wire = AdminWire()
    request = ListApiKeysRequest(page_size=7)
    answer = ListApiKeysResponse(api_keys=[ApiKey(name="app")])
    wire.end(Ending("ListApiKeys", answer))
    with wire.client as client:
        assert client.call("ListApiKeys", request, 120.0) == answer
        assert not wire.is_closed
    assert [call.request for call in wire.calls] == [request]
    assert wire.deadlines == [120.0]
    assert wire.is_closed


ALL = "failed to connect to all addresses; last error: UNKNOWN: ipv4:192.0.2.1:50052: "
SSL = (
    f"{ALL}Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:10000000:SSL routines:"
)
CAUSES = {
    "CERTIFICATE_VERIFY_FAILED": (
        f"{SSL}OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate",
        "give the authority's certificate by --tls-ca",
    ),
    "Hostname Verification": (
        f"{ALL}Custom verification check failed with error: UNAUTHENTICATED: Hostname Verification "
        "Check failed.",
        "its certificate is for another name: give --server the name that the certificate has",
    ),
    "Peer name": (
        f"{ALL}Peer name policyd.internal is not in peer certificate",
        "its certificate is for another name: give --server the name that the certificate has",
    ),
    "WRONG_VERSION_NUMBER": (
        f"{SSL}OPENSSL_internal:WRONG_VERSION_NUMBER: Invalid certificate verification context",
        "it does not speak TLS, or is no policyd: leave out --tls and --tls-ca, or check --server",
    ),
    "handshake failed": (
        f"{SSL}OPENSSL_internal:TLSV1_ALERT_PROTOCOL_VERSION",
        "it may ask for a certificate of yours (--tls-cert, --tls-key)",
    ),
    "Connection refused": (
        f"{ALL}Failed to connect to remote host: Connection refused",
        "nothing listens there: name the address that policyd serve prints as admin=…",
    ),
    "DNS": (
        "DNS resolution failed for policyd.internal:50052: UNKNOWN: Name or service not known",
        "its name cannot be resolved: check --server",
    ),
    "errors resolving": (
        "errors resolving policyd.internal:50052: [field:hostname lookup error:address lookup "
        "failed for policyd.internal:50052: Domain name not found]",
        "its name cannot be resolved: check --server",
    ),
    "unreachable": (
        f"{ALL}Failed to connect to remote host: Network is unreachable",
        "no route leads there: check --server, and the network between",
    ),
    "No route": (
        f"{ALL}Failed to connect to remote host: getsockopt(SO_ERROR): No route to host",
        "no route leads there: check --server, and the network between",
    ),
}


def test_every_cause_is_tried() -> None:
    """Each cause that the client looks for has its case here."""
    assert [mark for mark, _ in admin._CAUSES] == list(CAUSES)


@pytest.mark.parametrize("mark", CAUSES)
def test_why_a_server_cannot_be_reached(mark: str) -> None:
    """What gRPC says where no connection comes about, the client says with the fix."""
    said, fix = CAUSES[mark]
    told = failure(StatusCode.UNAVAILABLE, said)
    assert str(told).startswith(f"{AT} cannot be reached: ")
    assert str(told).endswith(fix)
    assert told.reason == ""


def test_an_unknown_cause() -> None:
    """What gRPC says of anything else is given as it is; also nothing."""
    told = failure(StatusCode.UNAVAILABLE, "GOAWAY received")
    assert str(told) == f"{AT} cannot be reached: GOAWAY received"
    assert str(failure(StatusCode.UNAVAILABLE, None)) == f"{AT} cannot be reached: "


@pytest.mark.parametrize("mark", admin._CLOSED)
@pytest.mark.parametrize(
    ("is_tls", "fix"),
    [
        (False, "it may speak TLS: give --tls or --tls-ca"),
        (True, "it may ask for a certificate of yours: give --tls-cert and --tls-key"),
    ],
)
def test_a_connection_that_is_closed(mark: str, is_tls: bool, fix: str) -> None:
    """A server that closes the connection without an answer wants TLS, or a certificate."""
    credentials = tls_credentials() if is_tls else None
    told = failure(StatusCode.UNAVAILABLE, f"recvmsg: {mark}", credentials=credentials)
    assert str(told) == f"{AT} cannot be reached: it closed the connection: {fix}"


def test_a_token_that_is_not_accepted() -> None:
    """The client knows where the token is, whatever the server says; the reason stays."""
    fix = "does not accept the token: give the --token-file that policyd serve names at its start"
    told = failure(StatusCode.UNAUTHENTICATED, "no")
    assert (str(told), told.reason) == (f"{AT} {fix}", "")
    trailer = error_details(ErrorInfo(reason="UNAUTHENTICATED"))
    told = failure(StatusCode.UNAUTHENTICATED, "no", trailer)
    assert (str(told), told.reason) == (f"{AT} {fix}", "UNAUTHENTICATED")


@pytest.mark.parametrize(
    "code", [StatusCode.UNAVAILABLE, StatusCode.UNIMPLEMENTED, StatusCode.NOT_FOUND]
)
def test_an_error_of_policyd(code: StatusCode) -> None:
    """An error with a reason is policyd's own: its text is told as it is, whatever its status, and
    the reason is found beside other details and trailers.
    """
    trailer = error_details(RetryInfo(), ErrorInfo(reason="KEY_NOT_FOUND"))
    told = failure(code, "no key has this ID", ("x-other", b"\xff"), trailer)
    assert (str(told), told.reason) == ("no key has this ID", "KEY_NOT_FOUND")


def test_details_without_a_reason() -> None:
    """A balancer's error has no reason, whatever else its details hold."""
    for trailer in (error_details(), error_details(RetryInfo())):
        told = failure(StatusCode.INTERNAL, "broken", trailer)
        assert (str(told), told.reason) == (f"{AT} reports INTERNAL: broken", "")


@pytest.mark.parametrize(
    ("code", "said", "told"),
    [
        (StatusCode.UNIMPLEMENTED, "Method not found!", "does not have ListApiKeys: either it is"),
        (
            StatusCode.RESOURCE_EXHAUSTED,
            "SERVER: Received message larger than max (5000000 vs. 4194304)",
            "takes no message so large: give it --max-message, or less",
        ),
        (StatusCode.RESOURCE_EXHAUSTED, "too many", "reports RESOURCE_EXHAUSTED: too many"),
        (
            StatusCode.DEADLINE_EXCEEDED,
            "Deadline Exceeded",
            "has not answered within 30 s: whether it did what it was asked to is not known",
        ),
        (StatusCode.PERMISSION_DENIED, "no", "reports PERMISSION_DENIED: no"),
    ],
)
def test_a_status_without_a_reason(code: StatusCode, said: str, told: str) -> None:
    """Of what gRPC or a balancer answers, the client says what is wrong and what to do."""
    assert str(failure(code, said)).startswith(f"{AT} {told}")


def test_a_server_that_is_silent() -> None:
    """A server that takes the connection and says nothing is given up at the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at = f"127.0.0.1:{silent.getsockname()[1]}"
        with AdminClient(at, "token") as client, pytest.raises(CallFailed) as failed:
            client.call("ListApiKeys", ListApiKeysRequest(), 0.5)
    assert "has not answered within 0.5 s" in str(failed.value)


@contextmanager
def listening(certificate: trustme.LeafCert | None) -> Iterator[str]:
    """The address of a gRPC server without a service."""
    server = grpc.server(ThreadPoolExecutor(1))
    if certificate is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        chain = b"".join(one.bytes() for one in certificate.cert_chain_pems)
        pair = (certificate.private_key_pem.bytes(), chain)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def told_of(at: str, authority: trustme.CA | None = None) -> str:
    """What a client, which trusts the authority, says of the server at that address."""
    credentials = tls_credentials(authority.cert_pem.bytes()) if authority else None
    with AdminClient(at, "token", credentials=credentials) as client:
        with pytest.raises(CallFailed) as failed:
            client.call("ListApiKeys", ListApiKeysRequest())
        return str(failed.value)


def test_what_grpc_says() -> None:
    """gRPC words these causes as the client looks for them."""
    authority = trustme.CA()
    with listening(authority.issue_cert("policyd.internal")) as at:
        assert told_of(at, trustme.CA()).endswith(CAUSES["CERTIFICATE_VERIFY_FAILED"][1])
        assert told_of(at, authority).endswith(CAUSES["Hostname Verification"][1])
        assert "it closed the connection: it may speak TLS" in told_of(at)
    with listening(None) as at:
        assert told_of(at, authority).endswith(CAUSES["WRONG_VERSION_NUMBER"][1])
        assert "does not have ListApiKeys" in told_of(at)
    assert told_of(at).endswith(CAUSES["Connection refused"][1])
