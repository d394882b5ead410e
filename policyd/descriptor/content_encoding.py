"""Content-Encoding: compressed bodies, decompressed within a bound."""

import sys
import zlib
from collections.abc import Callable
from typing import NamedTuple

import brotli

from policyd.engine.states import UserState

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MAX_CODINGS = 2
_MAX_HEADER = 256
"""Characters of a Content-Encoding that are read."""
_MAX_RATIO = 100
"""How many times its size a body may grow to. JSON compresses to a tenth, seldom to less."""
_ALWAYS_ALLOWED = 256 * 1024
"""Bytes that any body may grow to."""


class UnreadableBody(Exception):
    """A body that cannot be read, for the reason that `state` names."""

    def __init__(self, state: UserState) -> None:
        super().__init__(state.name)
        self.state = state


class _Decompressor(NamedTuple):
    """One stream's decompressor, of whichever library."""

    feed: Callable[[bytes, int], bytes]
    is_finished: Callable[[], bool]
    left_over: Callable[[], bytes]


def _zlib(window_bits: int) -> _Decompressor:
    stream = zlib.decompressobj(window_bits)
    return _Decompressor(stream.decompress, lambda: stream.eof, lambda: stream.unused_data)


def _brotli() -> _Decompressor:
    stream = brotli.Decompressor()
    return _Decompressor(
        lambda data, most: stream.process(data, output_buffer_limit=most),
        stream.is_finished,
        lambda: b"",
    )


def _zstd() -> _Decompressor:
    stream = zstd.ZstdDecompressor()
    return _Decompressor(stream.decompress, lambda: stream.eof, lambda: stream.unused_data)


_CODINGS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": lambda: _zlib(zlib.MAX_WBITS | 16),
    "x-gzip": lambda: _zlib(zlib.MAX_WBITS | 16),
    # zlib's format, as the standard says. Some clients send bare deflate, which some servers do not
    # read; it can be made to look like any text.
    "deflate": lambda: _zlib(zlib.MAX_WBITS),
    "br": _brotli,
    "zstd": _zstd,
}


def decompress(
    body: bytes,
    content_encoding: str,
    limit: int,
    is_readable: Callable[[bytes], bool] = lambda _: False,
) -> bytes:
    """The body without its codings, or itself where it has none.

    `limit` bounds the bytes that go in and those that come out; the latter are bounded by the size
    of what goes in, too, so that a small request costs little. `is_readable` says of a body that is
    still coded whether a server that does not undo the coding could read it.

    Raises UnreadableBody: TOO_LARGE, UNSUPPORTED_ENCODING or BAD_ENCODING.
    """
    if len(body) > limit:
        raise UnreadableBody(UserState.TOO_LARGE)
    if not content_encoding:
        return body
    codings = _codings(content_encoding)
    limit = decoded_limit(len(body), limit)
    for coding in reversed(codings):
        if is_readable(body):
            raise UnreadableBody(UserState.BAD_ENCODING)
        body = _decode(body, _CODINGS[coding](), limit)
    return body


def _codings(content_encoding: str) -> list[str]:
    if len(content_encoding) > _MAX_HEADER:
        raise UnreadableBody(UserState.UNSUPPORTED_ENCODING)
    codings = [coding.strip(" \t").lower() for coding in content_encoding.split(",")]
    codings = [coding for coding in codings if coding not in ("", "identity")]
    if len(codings) > _MAX_CODINGS or not set(codings) <= _CODINGS.keys():
        raise UnreadableBody(UserState.UNSUPPORTED_ENCODING)
    return codings


def decoded_limit(size: int, limit: int) -> int:
    """The bytes that a compressed body of `size` bytes may grow to."""
    return min(limit, max(_ALWAYS_ALLOWED, _MAX_RATIO * size))


def _decode(body: bytes, stream: _Decompressor, limit: int) -> bytes:
    decoded = _feed(stream, body, limit + 1)
    if len(decoded) > limit:
        raise UnreadableBody(UserState.TOO_LARGE)
    # Of several streams in a row, some servers read the first only.
    if not stream.is_finished() or stream.left_over():
        raise UnreadableBody(UserState.BAD_ENCODING)
    return decoded


def _feed(stream: _Decompressor, data: bytes, most: int) -> bytes:
    try:
        return stream.feed(data, most)
    except (zlib.error, brotli.error, zstd.ZstdError, MemoryError):
        raise UnreadableBody(UserState.BAD_ENCODING) from None


class Decompression:
    """Decompresses a body piece by piece as it comes: one stream, in one coding.

    `limit` bounds the bytes that come out of the body, and `piece_limit` those of one piece.
    """

    def __init__(self, content_encoding: str, limit: int, piece_limit: int) -> None:
        self._content_encoding = content_encoding
        self._left = limit
        self._piece_limit = piece_limit
        self._stream: _Decompressor | None = None

    def feed(self, data: bytes) -> bytes:
        """What the next piece decompresses to.

        Raises UnreadableBody: TOO_LARGE, UNSUPPORTED_ENCODING or BAD_ENCODING; feed no more then.
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
        if codings == ["deflate"] and not _is_zlib(data):
            # Some servers send bare deflate, by an old habit. No decision depends on an answer.
            return _zlib(-zlib.MAX_WBITS)
        return _CODINGS[codings[0]]()


def _is_zlib(data: bytes) -> bool:
    # Where only the first byte has come, it settles it: no compressor begins bare deflate with it.
    return data[0] & 0x0F == 8 and (len(data) == 1 or int.from_bytes(data[:2]) % 31 == 0)
