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
    codings = _codings(content_encoding)
    limit = decoded_limit(len(body), limit)
    for coding in reversed(codings):
        body = _decode(body, _CODINGS[coding], limit)
    return body


def _codings(content_encoding: str) -> list[str]:
    codings = [coding.strip().lower() for coding in content_encoding.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if len(codings) > _MAX_CODINGS or not set(codings) <= _CODINGS.keys():
        raise UnreadableBody(UserState.UNSUPPORTED_ENCODING)
    return codings


def decoded_limit(size: int, limit: int) -> int:
    """The bytes that a compressed body of `size` bytes may grow to."""
    return min(limit, max(_ALWAYS_ALLOWED, _MAX_RATIO * size))


def _decode(body: bytes, start: Callable[[bytes], _Decompressor], limit: int) -> bytes:
    decoded = bytearray()
    for _ in range(_MAX_MEMBERS):
        stream = start(body)
        decoded += _feed(stream, body, limit + 1 - len(decoded))
        if len(decoded) > limit:
            raise UnreadableBody(UserState.TOO_LARGE)
        if not stream.is_finished():
            raise UnreadableBody(UserState.BAD_ENCODING)
        body = stream.left_over()
        if not body:
            return bytes(decoded)
    raise UnreadableBody(UserState.BAD_ENCODING)


def _feed(stream: _Decompressor, data: bytes, most: int) -> bytes:
    try:
        return stream.feed(data, most)
    except (zlib.error, brotli.error, zstd.ZstdError, MemoryError):
        raise UnreadableBody(UserState.BAD_ENCODING) from None


class Decompression:
    """A body decompressed piece by piece as it comes, of one stream in one coding.

    `limit` bounds the bytes that come out of it, and `piece_limit` those that come out at once.
    """

    def __init__(self, content_encoding: str, limit: int, piece_limit: int) -> None:
        self._content_encoding = content_encoding
        self._left = limit
        self._piece_limit = piece_limit
        self._stream: _Decompressor | None = None

    def feed(self, data: bytes) -> bytes:
        """What the next piece decompresses to.

        Raises UnreadableBody: TOO_LARGE, UNSUPPORTED_ENCODING or BAD_ENCODING. It ends there.
        """
        if not data:
            return b""
        stream = self._stream = self._stream or self._start(data)
        if stream.is_finished():
            raise UnreadableBody(UserState.BAD_ENCODING)
        most = min(self._left, self._piece_limit)
        decoded = _feed(stream, data, most + 1)
        self._left -= len(decoded)
        if len(decoded) > most:
            raise UnreadableBody(UserState.TOO_LARGE)
        return decoded

    def _start(self, data: bytes) -> _Decompressor:
        codings = _codings(self._content_encoding)
        if len(codings) != 1:
            raise UnreadableBody(UserState.UNSUPPORTED_ENCODING)
        return _CODINGS[codings[0]](data)
