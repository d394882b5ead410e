"""API keys: "up-" and 48 of 0-9a-zA-Z, known here only by a digest.

A key has 285 bits of randomness. That is too much to search, so a plain SHA-256 keeps it secret.
"""

import hashlib
import secrets
import string

_ALPHABET = string.digits + string.ascii_letters
_PREFIX = "up-"
_LENGTH = 48


def generate() -> str:
    """A new API key."""
    return _PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))


def generate_id() -> str:
    """A new ID for an API key: `key_` and 16 hexadecimal digits. It is no secret."""
    return "key_" + secrets.token_hex(8)


def digest(key: str) -> bytes:
    """The 32 bytes by which `key` is stored and looked up. Any string has a digest, and that of a
    malformed key is no key's: so malformed and unknown keys take the same path and time."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
