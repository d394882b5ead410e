"""Values of `user` that name no end user."""

import time

import pytest

from policyd.descriptor.placeholders import is_placeholder


@pytest.mark.parametrize(
    "user",
    [
        *("undefined", "null", "None", "NULL", "nil", "NaN", "n/a"),
        *("user", "User", "test", "anonymous", "string", "user_id", "your-user-id"),
        *("[object Object]", "[object Undefined]", " undefined ", "undefined\n"),
        *("{{user_id}}", "{{ user.id }}", "{{}}", "acme-{{user}}", "{user}", "{0}", "{}"),
        *("${user}", "${process.env.USER}", "$USER", "#{user}", "%{user}"),
        *("%s", "%d", "%v", "%@", "%(user)s", "<user>", "<your user id>", "<%= user %>"),
        *("user-undefined", "tenant:null", "acme/NaN", "user_undefined", "u-[object Object]"),
    ],
)
def test_placeholders(user: str) -> None:
    """A value that a client sends which filled in nothing is a placeholder."""
    assert is_placeholder(user)


@pytest.mark.parametrize(
    "user",
    [
        *("ada", "u-1", "alice@example.com", "550e8400-e29b-41d4-a716-446655440000", "12345"),
        *("nullable", "undefined-behaviour", "tester", "users", "anonymous-7f3a", "usertest"),
        *(
            "Nona None-Smith",
            "a%20b",
            "100%s",
            '{"id": 7}',
            "a<b>c",
            "$5.00",
            "x{y}",
            "x{{y",
            "x}}y",
        ),
        *("annull", "h\u00e9l\u00e8ne", "\u0441\u0432\u0435\u0442\u0430", "", "foundnull"),
    ],
)
def test_names(user: str) -> None:
    """A value that may name an end user is no placeholder."""
    assert not is_placeholder(user)


@pytest.mark.parametrize(
    "piece", ["{", "{{", "}", "$", "%(", "%", "<", "[object ", "-", "a", "_", "undefined-", " "]
)
def test_linear_time(piece: str) -> None:
    """Sixteen times the length takes about sixteen times the time."""

    def seconds(size: int) -> float:
        text = "{" + piece * (size // len(piece)) + "!"
        best = float("inf")
        for _ in range(3):
            began = time.thread_time()
            is_placeholder(text)
            best = min(best, time.thread_time() - began)
        return best

    assert seconds(16 * 2**16) < 100 * max(seconds(2**16), 1e-5)
