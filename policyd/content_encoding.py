"""Content-Encoding: compressed bodies, decompressed within a bound."""

import sys
import zlib
from collections.abc import Callable
from typing import NamedTuple

import brotli

from policyd.model import UserState

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MAX_CODINGS = 2
_MAX_RATIO = 100
"""How many times its size a body may grow to. JSON compresses to a tenth, seldom to less."""
_ALWAYS_ALLOWED = 256 * 1024
"""Bytes that any body may grow to."""
# A gzip or zstd body may be several streams in a row. Each costs a copy of the rest.
_MAX_MEMBERS = 10


class UnreadableBody(Exception):
    """A body that cannot be read, for the reason that `state` names."""

    def __init__(self, state: UserState) -> None:
        super().__init__(state.name)
        self.state = state


class _Decompressor(NamedTuple):
    """One stream's decompressor, whichever library it is of."""

    feed: Callable[[bytes, int], bytes]
    is_finished: Callable[[], bool]
    left_over: Callable[[], bytes]


def _zlib(window_bits: int) -> _Decompressor:
    stream = zlib.decompressobj(window_bits)
    return _Decompressor(stream.decompress, lambda: stream.eof, lambda: stream.unused_data)


def _deflate(body: bytes) -> _Decompressor:
    # "deflate" is zlib's format by the standard, and bare deflate by a habit as old.
    is_zlib = len(body) > 1 and body[0] & 0x0F == 8 and (body[0] * 256 + body[1]) % 31 == 0
    return _zlib(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)


def _brotli(_: bytes) -> _Decompressor:
    stream = brotli.Decompressor()
    return _Decompressor(
        lambda data, most: stream.process(data, output_buffer_limit=most),
        stream.is_finished,
        lambda: b"",
    )


def _zstd(_: bytes) -> _Decompressor:
    stream = zstd.ZstdDecompressor()
    return _Decompressor(stream.decompress, lambda: stream.eof, lambda: stream.unused_data)


_CODINGS: dict[str, Callable[[bytes], _Decompressor]] = {
    "gzip": lambda _: _zlib(zlib.MAX_WBITS | 16),
    "x-gzip": lambda _: _zlib(zlib.MAX_WBITS | 16),
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}


def decompress(body: bytes, content_encoding: str, limit: int) -> bytes:
    """The body without its codings. `limit` bounds the bytes that go in and those that come out;
    those are bounded by the size of what goes in, too, so that a small request costs little.

    Raises UnreadableBody: TOO_LARGE, UNSUPPORTED_ENCODING or BAD_ENCODING.
    """
    if len(body) > limit:
        raise UnreadableBody(UserState.TOO_LARGE)
    if not content_encoding:
        return body
    codings = [coding.strip().lower() for coding in content_encoding.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if len(codings) > _MAX_CODINGS or not set(codings) <= _CODINGS.keys():
        raise UnreadableBody(UserState.UNSUPPORTED_ENCODING)
    limit = decoded_limit(len(body), limit)
    for coding in reversed(codings):
        body = _decode(body, _CODINGS[coding], limit)
    return body


def decoded_limit(size: int, limit: int) -> int:
    """The bytes that a compressed body of `size` bytes may grow to."""
    return min(limit, max(_ALWAYS_ALLOWED, _MAX_RATIO * size))


def _decode(body: bytes, start: Callable[[bytes], _Decompressor], limit: int) -> bytes:
    decoded = bytearray()
    for _ in range(_MAX_MEMBERS):
        stream = start(body)
        try:
            decoded += stream.feed(body, limit + 1 - len(decoded))
        except (zlib.error, brotli.error, zstd.ZstdError, MemoryError):
            raise UnreadableBody(UserState.BAD_ENCODING) from None
        if len(decoded) > limit:
            raise UnreadableBody(UserState.TOO_LARGE)
        if not stream.is_finished():
            raise UnreadableBody(UserState.BAD_ENCODING)
        body = stream.left_over()
        if not body:
            return bytes(decoded)
    raise UnreadableBody(UserState.BAD_ENCODING)
