"""A process that reads bodies, one after the other, until its input ends.

    parent to reader   the length of the heading, in four bytes; the heading, in msgpack: the body's
                       size, and how to read it; then the body
    reader to parent   the length of what follows, in four bytes; then, in msgpack, its attributes

Its input ends with its parent, so not even a parent that is killed leaves readers behind. The
parent checks the form of each answer, so that nonsense costs one request a 503.
"""

import os
import select
import sys
from typing import BinaryIO, NamedTuple

import msgspec

from policyd.command.allocator import give_memory_back, keep_memory
from policyd.descriptor.body import read_body
from policyd.descriptor.identifiers import BodyAttributes
from policyd.engine.places import Endpoint

LENGTH = 4
"""Bytes of a length."""
_IDLE = 1.0
"""Seconds without a body after which memory is given back."""
_NICE = 5
"""How much a reader gives way to the process that answers requests, where cores are few."""


class BodyContext(NamedTuple):
    """How to read a body: see read_body()."""

    content_type: str | None
    content_encoding: str
    endpoint: Endpoint | None
    limit: int


_encoder = msgspec.msgpack.Encoder()
_heading_decoder = msgspec.msgpack.Decoder(tuple[int, BodyContext])
_answer_decoder = msgspec.msgpack.Decoder(BodyAttributes)


def heading(about: BodyContext, size: int) -> bytes:
    """What goes before a body of `size` bytes."""
    return _framed(_encoder.encode((size, about)))


def read_answer(answer: bytes) -> BodyAttributes:
    """The attributes in an answer, given without its length. Raises EOFError for nonsense."""
    try:
        return _answer_decoder.decode(answer)
    except msgspec.DecodeError:
        raise EOFError from None


def serve(bodies: BinaryIO, answers: BinaryIO) -> None:
    """Read each body that comes by `bodies`, and answer by `answers`."""
    while length := _next(bodies):
        size, about = _heading_decoder.decode(bodies.read(int.from_bytes(length)))
        answers.write(_framed(_encoder.encode(read_body(bodies.read(size), *about))))
        answers.flush()


def _next(bodies: BinaryIO) -> bytes:
    """The next length, or nothing where there is none to come."""
    if not select.select([bodies], [], [], _IDLE)[0]:
        give_memory_back()
    return bodies.read(LENGTH)


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(LENGTH) + message


if __name__ == "__main__":
    os.nice(_NICE)
    keep_memory()
    serve(sys.stdin.buffer, sys.stdout.buffer)
