"""What is read from a request's headers: the API key, the override, the trace ID, end users."""

import pytest

from policyd.descriptor import headers
from policyd.engine.states import Credential


@pytest.mark.parametrize(
    ("name", "is_own"),
    [
        ("x-usagepanda-api-key", True),
        ("X-UsagePanda-Trace-ID", True),
        ("x_usagepanda_api_key", True),
        ("X-USAGEPANDA_ENFORCE-user-ids", True),
        ("x-usagepanda", False),
        ("my-x-usagepanda-api-key", False),
        ("authorization", False),
    ],
)
def test_headers_for_policyd_alone(name: str, is_own: bool) -> None:
    """A header for policyd alone is known in any letter case, and with underscores for dashes."""
    assert headers.is_own(name) is is_own


@pytest.mark.parametrize(
    ("given", "agreed"),
    [([], ""), (["a"], "a"), (["a", "a"], "a"), (["a", "b"], None), (["a", ""], None)],
)
def test_what_repeats_agree_on(given: list[str], agreed: str | None) -> None:
    """Repeats agree where all of them are the same."""
    assert headers.agreed(given) == agreed


@pytest.mark.parametrize(
    ("given", "is_coded"),
    [
        ([], False),
        (["identity"], False),
        (["Identity", "IDENTITY"], False),
        (["gzip"], True),
        (["identity", "gzip"], True),
        (["identity, gzip"], True),
        (["xidentity"], True),
        ([""], True),
    ],
)
def test_a_body_that_is_compressed(given: list[str], is_coded: bool) -> None:
    """A body counts as compressed unless each Content-Encoding says clearly that it is not."""
    assert headers.is_coded(given) is is_coded


@pytest.mark.parametrize(
    ("given", "wants"),
    [
        ({"upgrade": ["websocket"]}, True),
        ({"upgrade": ["WebSocket"]}, True),
        ({"upgrade": ["h2c", "foo/2, websocket"]}, True),
        ({"upgrade": ["h2c"]}, False),
        ({"connection": ["websocket"]}, False),
        ({}, False),
    ],
)
def test_a_client_that_asks_for_websocket(given: dict[str, list[str]], wants: bool) -> None:
    """Any value of Upgrade that names WebSocket asks for it."""
    assert headers.wants_websocket(given) is wants


@pytest.mark.parametrize(
    ("given", "is_partial"),
    [
        ([], False),
        (["false"], False),
        ([" FALSE "], False),
        (["true"], True),
        (["false", "true"], True),
        ([""], True),
    ],
)
def test_a_body_that_is_cut(given: list[str], is_partial: bool) -> None:
    """A body counts as cut unless Envoy states clearly that it is whole."""
    assert headers.is_partial({headers.PARTIAL_BODY: given}) is is_partial


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("a-B_9", "a-B_9"),
        ("a" * 99, "a" * 99),
        ("a" * 100, ""),
        ("", ""),
        ("a b", ""),
        ("a\n", ""),
        ("\u00e9", ""),
    ],
)
def test_trace_ids(given: str, read: str) -> None:
    """A trace ID of another form counts as none."""
    assert headers.trace_id(given) == read


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [("true", True), ("true".rjust(64), True), ("true".rjust(65), False), ("x" * 10**6, False)],
)
def test_long_overrides(given: str, is_kept: bool) -> None:
    """A value that is longer than any valid override becomes a short one that is not valid."""
    read = headers.override(given)
    assert (read == given) is is_kept
    assert len(read) <= 64
    assert is_kept or read.strip().lower() not in ("true", "false")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ([], (Credential.MISSING, "")),
        (["up-1"], (Credential.GIVEN, "up-1")),
        (["up-1", " up-1\t"], (Credential.GIVEN, "up-1")),
        (["up-1", "up-2"], (Credential.CONFLICTING, "")),
        # Only blanks stand around a header's value; what else stands there is a part of the key.
        (["\u00a0up-1"], (Credential.GIVEN, "\u00a0up-1")),
        (["XUP-1X"], (Credential.GIVEN, "XUP-1X")),
        (["a" * 1024], (Credential.GIVEN, "a" * 1024)),
    ],
)
def test_api_keys(given: list[str], read: tuple[Credential, str]) -> None:
    """Values of the key header that differ name no API key."""
    assert headers.credential(given) == read


def test_a_text_longer_than_any_key() -> None:
    """A text longer than any key is not read to its end, and names no API key that could be in
    force."""
    credential, key = headers.credential(["a" * 1025])
    assert credential is Credential.GIVEN
    assert key
    assert not set(key) <= {"a"}
