"""Headers that an operator trusts to name the end user: which can be listed, and by which callers
they count."""

import re

import pytest

from policyd.descriptor.end_users import check_end_user_headers, check_end_users, value
from policyd.engine.method_override import HEADERS
from policyd.errors import SettingsError

EIGHT = tuple(f"x-user-{number}" for number in range(8))
USED = "has another meaning, and its values would be logged: list a header that holds end users"


@pytest.mark.parametrize(
    ("headers", "callers"),
    [
        ((), ()),
        (("x-forwarded-user",), ("grpc",)),
        (("x-user", "x-person"), ("grpc", "http", "envoy")),
        (EIGHT, ("http",)),
    ],
)
def test_trusted_headers(headers: tuple[str, ...], callers: tuple[str, ...]) -> None:
    """Up to eight headers are trusted, when one of the three kinds of callers sends them."""
    check_end_users(headers, callers)
    check_end_user_headers(headers)


GIVEN_APART = "--end-user-headers and --end-user-callers go together: give both or neither"


@pytest.mark.parametrize(
    ("headers", "callers", "error"),
    [
        (("x-user",), (), GIVEN_APART),
        ((), ("http",), GIVEN_APART),
        (
            ("x-user",),
            ("http", "x" * 81),
            f"--end-user-callers takes grpc, http, envoy, not '{'x' * 80}'",
        ),
        (
            ("X" * 81,),
            ("http",),
            "--end-user-headers takes names of headers in lower case, such as x-forwarded-user, "
            f"not '{'X' * 80}'",
        ),
        (("x-user", "cookie"), ("http",), f"--end-user-headers cookie {USED} and nothing else"),
        (
            ("x-usagepanda-user",),
            ("http",),
            f"--end-user-headers x-usagepanda-user {USED} and nothing else",
        ),
        ((*EIGHT, "x-user"), ("http",), "--end-user-headers takes up to 8 headers"),
    ],
)
def test_what_cannot_be_trusted(
    headers: tuple[str, ...], callers: tuple[str, ...], error: str
) -> None:
    """The error names the setting, as it is called where it was given, and what it takes."""
    with pytest.raises(SettingsError, match=f"^{re.escape(error)}$"):
        check_end_users(headers, callers)
    other = error.replace("--end-user-headers", "headers").replace("--end-user-callers", "callers")
    with pytest.raises(SettingsError, match=f"^{re.escape(other)}$"):
        check_end_users(headers, callers, ("headers", "callers"))


@pytest.mark.parametrize("header", sorted(one for one in HEADERS if "_" not in one))
def test_method_overrides_name_no_end_user(header: str) -> None:
    """A header that overrides the method says how a request is read."""
    with pytest.raises(SettingsError, match=f"{header} has another meaning"):
        check_end_user_headers([header])


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("ada", "ada"),
        ("a" * 1025, "a" * 1024),
        ("zoë".encode().decode("latin-1"), "zoë"),
        ("zoë", "zoë"),
        ("張", "張"),
        ("\udcff", "?"),
    ],
)
def test_a_headers_value(text: str, read: str) -> None:
    """A header's value is read as UTF-8, however an adapter decoded it, up to its bound."""
    assert value(text) == read
