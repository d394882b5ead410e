"""Compressed bodies that come piece by piece, as an upstream's answer does."""

import gzip
import random
import zlib
from collections.abc import Iterable

import pytest

from policyd.descriptor.content_encoding import Decompression, UnreadableBody
from policyd.engine.states import UserState
from tests.support.codings import COMPRESS

TEXT = random.Random(3).randbytes(2000).hex().encode()
CODED = {
    **{coding: (coding, compress(TEXT)) for coding, compress in COMPRESS.items()},
    "x-gzip": ("X-GZip", gzip.compress(TEXT)),
    "an identity beside it": ("identity, gzip", gzip.compress(TEXT)),
    # An old habit of servers.
    "bare deflate": ("deflate", zlib.compress(TEXT, wbits=-zlib.MAX_WBITS)),
}


def read(coding: str, pieces: Iterable[bytes], limit: int = 2**20, most: int = 2**20) -> bytes:
    reader = Decompression(coding, limit, most)
    return b"".join(map(reader.feed, pieces))


def problem(coding: str, pieces: Iterable[bytes], limit: int = 2**20) -> UserState:
    with pytest.raises(UnreadableBody) as raised:
        read(coding, pieces, limit)
    return raised.value.state


def pieces_of(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 1000, 10_000])
@pytest.mark.parametrize("name", CODED)
def test_pieces(name: str, size: int) -> None:
    """A stream is read in whatever pieces it comes, empty ones among them."""
    coding, data = CODED[name]
    pieces = pieces_of(data, size)
    assert read(coding, pieces) == TEXT
    assert read(coding, [b"", *pieces[:1], b"", *pieces[1:], b""]) == TEXT


def test_both_formats_of_deflate() -> None:
    """zlib's format is distinguished from bare deflate, whatever the compressor and the text."""
    for level in range(10):
        for window in range(9, 16):
            assert read("deflate", [zlib.compress(TEXT, level, window)]) == TEXT
    for number in range(200):
        text = b"%d" % number * number
        for level in (1, 9):
            assert read("deflate", [zlib.compress(text, level, -zlib.MAX_WBITS)]) == text
    # Not compressed, with a first byte that zlib's format could have.
    assert read("deflate", [b"\x08\x05\0\xfa\xffhello\x01\0\0\xff\xff"]) == b"hello"


@pytest.mark.parametrize("coding", COMPRESS)
def test_bytes_that_do_not_belong_to_the_stream(coding: str) -> None:
    """Bytes that are no stream, or that come after the end of one, make a body unreadable."""
    data = COMPRESS[coding](TEXT)
    assert problem(coding, [b"\xff{}"]) is UserState.BAD_ENCODING
    assert problem(coding, [data, data]) is UserState.BAD_ENCODING


@pytest.mark.parametrize("coding", ["", "identity", "gzip, br", "gzip, gzip, gzip", "snappy"])
def test_what_is_not_one_coding(coding: str) -> None:
    """A body in no coding, in several or in an unknown one is not read."""
    assert problem(coding, [gzip.compress(TEXT)]) is UserState.UNSUPPORTED_ENCODING


def three_pieces() -> list[bytes]:
    """A stream in three pieces, of which each expands to 1,000 bytes."""
    compressor = zlib.compressobj()
    parts = pieces_of(TEXT[:3000], 1000)
    return [compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH) for part in parts]


def test_the_bounds() -> None:
    """A stream may expand to its bound, and a piece to that of a piece, to the byte."""
    assert read("deflate", three_pieces(), 3000, 1000) == TEXT[:3000]
    for limit, most in ((2999, 1000), (1999, 1000), (3000, 999)):
        with pytest.raises(UnreadableBody) as raised:
            read("deflate", three_pieces(), limit, most)
        assert raised.value.state is UserState.TOO_LARGE
        assert str(raised.value) == "TOO_LARGE"
