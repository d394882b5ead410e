"""Bodies in pieces: few, none of them large, and together what came."""

import random
from itertools import islice

import pytest

from policyd.descriptor.pieces import PIECE, Pieces

LARGEST = 4 * PIECE


@pytest.mark.parametrize("sizes", [[], [1], [PIECE], [1] * 1000, [PIECE - 1] * 9, [1, PIECE, 1]])
def test_what_came(sizes: list[int]) -> None:
    """Whatever it comes in, a body is what came, in its order."""
    chance = random.Random(1)
    data = [chance.randbytes(size) for size in sizes]
    pieces = Pieces()
    for one in data:
        pieces.add(one)
    assert pieces.whole() == b"".join(pieces) == b"".join(data)
    assert len(pieces) == sum(sizes)


def test_small_pieces_are_joined() -> None:
    """A client that sends its body byte by byte does not have it held byte by byte."""
    pieces = Pieces()
    for _ in range(3 * PIECE + 1):
        pieces.add(b"a")
    assert [len(piece) for piece in pieces] == [PIECE, PIECE, PIECE, 1]


def test_a_large_piece_is_cut() -> None:
    """A large piece is processed in smaller ones, which together are the same."""
    body = bytes(range(256)) * (10 * PIECE // 256)
    pieces = Pieces(body)
    sizes = [len(piece) for piece in islice(pieces, 4)]
    assert sizes == [LARGEST, LARGEST, 2 * PIECE]
    assert b"".join(pieces) == body
    assert pieces.whole() is body
