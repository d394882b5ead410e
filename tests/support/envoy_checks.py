"""Check, called over gRPC as Envoy calls it."""

from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.auth.v3.attribute_context_pb2 import AttributeContext
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest, CheckResponse
from envoy.service.auth.v3.external_auth_pb2_grpc import AuthorizationStub

CHAT = b'{"model":"gpt-4o-mini","messages":[]}'
CHAT_WITH_USER = b'{"model":"gpt-4o-mini","messages":[],"user":"u-1"}'
PATH = "/v1/chat/completions"
KEY = "x-usagepanda-api-key"
OVERRIDE = "x-usagepanda-enforce-user-ids"
BUFFERED = {"x-envoy-auth-partial-body": "false"}


def request(
    headers: Mapping[str, str] | Iterable[tuple[str, str | bytes]],
    raw_body: bytes = b"",
    extensions: Mapping[str, str] | None = None,
    **fields: Any,
) -> CheckRequest:
    """A CheckRequest: with a map of headers as Envoy sends it at first, or a list of raw ones."""
    fields = {"method": "POST", "path": PATH, "protocol": "HTTP/1.1", **fields}
    http = AttributeContext.HttpRequest(raw_body=raw_body, **fields)
    if isinstance(headers, Mapping):
        http.headers.update(headers)
    else:
        raw = [
            HeaderValue(key=n, raw_value=v.encode() if isinstance(v, str) else v)
            for n, v in headers
        ]
        http.header_map.CopyFrom(HeaderMap(headers=raw))
    attributes = AttributeContext(request=AttributeContext.Request(http=http))
    attributes.source.address.socket_address.address = "192.0.2.7"
    attributes.context_extensions.update(extensions or {})
    return CheckRequest(attributes=attributes)


class Checker:
    """A caller of the policyd at `at`."""

    def __init__(self, at: str) -> None:
        self._channel = grpc.insecure_channel(at)
        self._stub = AuthorizationStub(self._channel)

    def ask(self, asked: CheckRequest) -> CheckResponse:
        return self._stub.Check(asked, timeout=30)

    def close(self) -> None:
        self._channel.close()


def status(answer: CheckResponse) -> int:
    """The HTTP status of the denial; 0 where the request is allowed."""
    is_allowed = answer.status.code == 0
    assert is_allowed == (answer.WhichOneof("http_response") == "ok_response")
    assert is_allowed or answer.WhichOneof("http_response") == "denied_response"
    return 0 if is_allowed else answer.denied_response.status.code


def flags(answer: CheckResponse) -> list[str]:
    """The flags in its dynamic metadata."""
    return list(answer.dynamic_metadata["flags"])
