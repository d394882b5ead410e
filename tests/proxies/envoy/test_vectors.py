"""The conformance vectors through a real Envoy."""

import pytest

from tests.proxies.envoy.proxy import Envoy
from tests.support import conformance
from tests.support.conformance import Keys, Vector
from tests.support.processes import Policyd
from tests.support.stack import Upstream

pytestmark = pytest.mark.timeout(600)  # For a file of vectors.
# Envoy takes away what a Connection header names before any filter sees the request, so policyd
# judges what goes upstream: a body without its coding or type, and a request without its key.
REFUSED = {
    *("headers/connection_content_encoding", "headers/connection_content_encoding_no_user"),
    *(
        "headers/connection_content_encoding_case",
        "headers/connection_content_encoding_case_no_user",
    ),
    *(
        "headers/connection_content_encoding_twin",
        "headers/connection_content_encoding_twin_no_user",
    ),
    *("headers/connection_content_type", "headers/connection_content_type_no_user"),
    *("headers/connection_host", "headers/connection_key", "headers/connection_all"),
}
# Envoy removes a header that the client itself names in Connection.
NOT_ASKED = {
    "headers/connection_authorization": b"authorization",
    "headers/connection_override": b"x-usagepanda-enforce-user-ids",
}


@pytest.fixture(scope="session")
def keys(policyd: Policyd) -> Keys:
    return Keys(policyd)


@conformance.over_http_by_file
def test_vectors(
    vectors: tuple[Vector, ...],
    subtests: pytest.Subtests,
    keys: Keys,
    envoy: Envoy,
    upstream: Upstream,
) -> None:
    """Envoy answers a denied request byte for byte, and sends an allowed one upstream."""

    def check(vector: Vector) -> None:
        secret = keys.secret(vector.key)
        if vector.id not in NOT_ASKED:
            conformance.check_over_http(vector, envoy.url, secret, upstream, refused=REFUSED)
            return
        upstream.forget()
        conformance.send(vector, envoy.url, secret)
        (received,) = upstream.received
        assert not received.header(NOT_ASKED[vector.id])

    conformance.check_each(subtests, vectors, check)
