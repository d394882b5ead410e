"""The HTTP check passes the conformance vectors."""

import pytest

from tests.support import conformance
from tests.support.conformance import Keys, Vector
from tests.support.http_checks import about
from tests.support.processes import Policyd
from tests.support.raw_http import Response

pytestmark = pytest.mark.timeout(600)  # For a file of vectors.
# The check takes an empty body for one that the proxy left out: 400 in other words.
EMPTY = {
    *("encodings/gzip_nothing", "encodings/deflate_nothing", "encodings/br_nothing"),
    *("encodings/zstd_nothing", "forms/bad_empty", "malformed/empty"),
}


@pytest.fixture(scope="module")
def keys(policyd: Policyd) -> Keys:
    return Keys(policyd)


def verdict(vector: Vector, response: Response) -> None:
    """Check that the answer is the vector's."""
    if vector.id in EMPTY:
        assert response.status == 400
    elif vector.response:
        conformance.check_response(vector, response)
    else:
        assert response.status == 200, response
        path = vector.descriptor.path
        assert response.all("x-policyd-upstream-path") == ([path] if path else [])


@pytest.mark.slow
@conformance.over_http_by_file
def test_named_by_headers(
    vectors: tuple[Vector, ...], subtests: pytest.Subtests, url: str, keys: Keys
) -> None:
    """A request that X-Forwarded-Method and X-Forwarded-Uri name is judged as its vector states."""

    def check(vector: Vector) -> None:
        secret = keys.secret(vector.key)
        named = about(vector.request.method, vector.request.target)
        response = conformance.send(
            vector, url, secret, method="POST", target="/v1/check", headers=named
        )
        verdict(vector, response)

    conformance.check_each(subtests, vectors, check)


@conformance.over_http_by_file
def test_behind_the_prefix(
    vectors: tuple[Vector, ...], subtests: pytest.Subtests, url: str, keys: Keys
) -> None:
    """A request whose own method and path follow /v1/check is judged as its vector states."""

    def check(vector: Vector) -> None:
        secret = keys.secret(vector.key)
        target = f"/v1/check{vector.request.target}"
        verdict(vector, conformance.send(vector, url, secret, target=target))

    conformance.check_each(subtests, vectors, check)
