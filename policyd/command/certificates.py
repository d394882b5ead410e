"""When certificates expire: the standard library loads them, but does not give their dates."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

from policyd.command.settings import read_file
from policyd.errors import SettingsError

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_UTC_TIME = 0x17
_VERSION = 0xA0
"""DER's tags of a year with two digits, and of the version that may come first."""
_BEFORE_VALIDITY = 3
"""Elements before the dates, besides the version: serial number, algorithm, issuer."""


def expires_at(path: Path, flag: str) -> datetime:
    """When the first of the certificates in a PEM file expires. Raises SettingsError."""
    *pieces, _ = read_file(path).split(_END)
    found = [_BEGIN + one.rpartition(_BEGIN)[2] + _END for one in pieces if _BEGIN in one]
    try:
        return min(_not_after(ssl.PEM_cert_to_DER_cert(one.decode("ascii"))) for one in found)
    except (ValueError, IndexError):
        raise SettingsError(f"{flag} {path} holds no certificate: give one in PEM") from None


def _not_after(der: bytes) -> datetime:
    """When a certificate expires: RFC 5280, section 4.1. Raises ValueError or IndexError if it is
    none."""
    _, certificate, _ = _part(der)
    _, signed, _ = _part(certificate)
    tag, _, rest = _part(signed)
    for _ in range(_BEFORE_VALIDITY if tag == _VERSION else _BEFORE_VALIDITY - 1):
        _, _, rest = _part(rest)
    _, validity, _ = _part(rest)
    _, _, rest = _part(validity)
    tag, text, _ = _part(rest)
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC)


def _part(der: bytes) -> tuple[int, bytes, bytes]:
    """The tag and the content of the first element, and what follows it."""
    tag, length, start = der[0], der[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[2:start])
    if start + length > len(der):
        raise ValueError("it is cut short")
    return tag, der[start : start + length], der[start + length :]
