"""The conformance vectors through nginx, HAProxy and Caddy."""

from collections.abc import Iterator

import pytest

from tests.proxies.http.conftest import Stack, stack
from tests.support import conformance
from tests.support.conformance import Keys, Vector
from tests.support.stack import Background

pytestmark = pytest.mark.timeout(600)  # For a file of vectors.
# policyd cannot know whether an empty body is one that the proxy left out, and answers 400 in other
# words than of a body that is no JSON.
EMPTY = {
    *("encodings/gzip_nothing", "encodings/deflate_nothing", "encodings/br_nothing"),
    *("encodings/zstd_nothing", "forms/bad_empty", "malformed/empty"),
}
REFUSED = {
    # nginx itself refuses paths that lead above the root, and those with a NUL.
    "nginx": {
        *EMPTY,
        "scope/spelling_dots_above_root",
        "scope/spelling_nul",
        "scope/ambiguous_nul",
    },
    "haproxy": EMPTY,
    # Caddy stands before policyd-gateway.
    "caddy": set(),
}


@pytest.fixture(scope="module", params=REFUSED)
def running(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    background: Background,
) -> Iterator[tuple[Stack, Keys]]:
    with stack(request.param, tmp_path_factory.mktemp(request.param), background) as proxy:
        yield proxy, Keys(proxy.policyd)


@conformance.over_http_by_file
def test_vectors(
    vectors: tuple[Vector, ...], subtests: pytest.Subtests, running: tuple[Stack, Keys]
) -> None:
    """Each proxy answers a denied request byte for byte, and forwards an allowed one."""
    proxy, keys = running

    def check(vector: Vector) -> None:
        conformance.check_over_http(
            *(vector, proxy.url, keys.secret(vector.key), proxy.upstream),
            exact=False,  # These proxies send headers in an order of their own.
            refused=REFUSED[proxy.name],
        )

    conformance.check_each(subtests, vectors, check)
