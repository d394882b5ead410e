"""The conformance vectors through a real Envoy."""

import pytest

from tests import conformance
from tests.conformance import Keys, Vector
from tests.envoy.proxy import Envoy
from tests.processes import Policyd
from tests.stack import Upstream


@pytest.fixture(scope="session")
def keys(policyd: Policyd) -> Keys:
    return Keys(policyd)


@conformance.over_http
def test_vectors(vector: Vector, keys: Keys, envoy: Envoy, upstream: Upstream) -> None:
    """Envoy answers a denied request byte for byte, and sends an allowed one upstream."""
    secret = keys.secret(vector.key)
    conformance.check_over_http(vector, envoy.url, secret, upstream)
