"""API keys: "up-" and 48 of 0-9a-zA-Z, known here only by a digest.

A key has 285 bits of randomness. That is too much to search, so a plain SHA-256 keeps it secret.
"""

import hashlib
import re
import secrets
import string

from policyd.errors import InvalidArgument

_ALPHABET = string.digits + string.ascii_letters
_PREFIX = "up-"
_LENGTH = 48
_SUFFIX = 4
ID_PREFIX = "key_"
_ID = re.compile(ID_PREFIX + "[0-9a-f]{16}")
_DIGEST = re.compile("[0-9a-fA-F]{64}")


def generate() -> str:
    """A new API key."""
    return _PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))


def generate_id() -> str:
    """A new ID for an API key: `key_` and 16 hexadecimal digits. It is no secret."""
    return ID_PREFIX + secrets.token_hex(8)


def is_id(text: str) -> bool:
    """Whether this is an ID of the form that generate_id() gives."""
    return _ID.fullmatch(text) is not None


def digest(key: str) -> bytes:
    """The 32 bytes by which `key` is stored and looked up. Any string has a digest, and no key has
    that of a malformed one: so malformed and unknown keys take the same path and time."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def suffix(key: str) -> str:
    """The last characters of `key`, by which people recognise it."""
    return key[-_SUFFIX:]


def read_digest(text: str) -> bytes:
    """The digest that `text` states in hexadecimal. Raises InvalidArgument."""
    if not _DIGEST.fullmatch(text):
        raise InvalidArgument(
            "a digest is the SHA-256 of a key in 64 hexadecimal digits, as `printf %s KEY | "
            "sha256sum` prints it"
        )
    return bytes.fromhex(text)
