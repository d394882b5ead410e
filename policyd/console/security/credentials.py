"""The administrator's password: its rules, its hash, and the check of a secret against it."""

import hmac
import threading
import unicodedata
from functools import cache
from hashlib import sha256

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

MIN_LENGTH = 12
MAX_LENGTH = 200
_MIN_VARIETY = 5
_hasher = PasswordHasher()
# A hash takes 64 MiB, and 50 ms in four threads: of many sign-ins at once, most wait for a turn.
_at_once = threading.BoundedSemaphore(2)


def fault(password: str, repeated: str) -> str:
    """What is wrong with a new password, as a sentence; "" where it is good."""
    if len(password) < MIN_LENGTH:
        return f"Use at least {MIN_LENGTH} characters: three or four words will do."
    if len(password) > MAX_LENGTH:
        return f"Use at most {MAX_LENGTH} characters."
    if len(set(password)) < _MIN_VARIETY:
        return f"Use at least {_MIN_VARIETY} different characters."
    if password != repeated:
        return "The two passwords differ. Type the same one twice."
    return ""


def digest(password: str) -> str:
    """The hash of a password, as the store keeps it."""
    with _at_once:
        return _hasher.hash(_normal(password))


def matches(secret: str, password_hash: str, token: str) -> bool:
    """Whether `secret` is the password or the administration token. It takes the same time for
    every secret, so that the time reveals nothing."""
    right = is_token(secret, token)
    return _is_password(secret[: MAX_LENGTH + 1], password_hash) or right


def is_token(secret: str, token: str) -> bool:
    """Whether `secret` is the administration token."""
    return hmac.compare_digest(_digest(secret.strip()), _digest(token))


def _is_password(secret: str, password_hash: str) -> bool:
    with _at_once:
        try:
            _hasher.verify(password_hash or _hash_without_password(), _normal(secret))
        except (VerificationError, InvalidHashError):
            return False
    return bool(password_hash)


@cache
def _hash_without_password() -> str:
    """A hash to check against where no password is set, so that the check takes the same time."""
    return _hasher.hash("no password was set")


def _normal(password: str) -> bytes:
    # Keyboards differ in the characters that they make of a letter with an accent.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def use(hasher: PasswordHasher) -> None:
    """Hash with `hasher` from now on, in place of argon2's defaults: tests use a cheap one."""
    global _hasher  # noqa: PLW0603  # one for the process, as there is one administrator
    _hasher = hasher
    _hash_without_password.cache_clear()
