"""Answers read while they pass: within bounds, touching nothing.

Of a JSON answer, and of each line of an event stream, only both ends are kept, which is where it
says its ID, model and usage. Of a compressed answer, as much is decompressed as its bound allows.
"""

import re
from typing import Protocol

from gateway import usage
from gateway.usage import AnswerMetadata
from policyd.descriptor.content_encoding import Decompression, UnreadableBody

END = 32 * 1024
"""Bytes that are kept of each end of a document. One of up to twice as many is kept whole."""
MAX_DECOMPRESSED = 64 * 2**20
"""Bytes of a compressed answer that are looked at, decompressed, and ..."""
MAX_PIECE = 4 * 2**20
"""... those that one piece of it may grow to."""
FIRST_EVENTS = 16
"""Events of a stream in which its ID and its model are looked for."""
_LINE_END = re.compile(rb"[\r\n]")
_EVENT = re.compile(rb"(?:\A|[\r\n])data:([^\r\n]*)")
_NAME = len(b"data:")
_USAGE = re.compile(rb'"usage"\s*:\s*\{')


class Reader(Protocol):
    """Reads one answer."""

    def feed(self, data: bytes) -> None:
        """Look at the answer's next bytes."""

    def metadata(self) -> AnswerMetadata:
        """the metadata found so far."""


def reader(content_type: str, content_encoding: str) -> Reader | None:
    """What reads an answer with these headers; None where it will not say anything."""
    kind = content_type.partition(";")[0].strip().lower()
    found: Reader
    if kind == "text/event-stream":
        found = EventReader()
    elif kind == "application/json" or kind.endswith("+json"):
        found = JsonReader()
    else:
        return None
    is_plain = content_encoding.lower() in ("", "identity")
    return found if is_plain else DecompressingReader(found, content_encoding)


class _Ends:
    """The two ends of a document that comes in pieces."""

    __slots__ = ("_head", "_tail", "size")

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self.size = 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        room = END - len(self._head)
        if room > 0:
            self._head += data[:room]
        if len(data) > room:
            self._tail += data[max(room, len(data) - END) :]
            if len(self._tail) > 2 * END:
                del self._tail[:-END]

    def parts(self) -> tuple[bytes, bytes]:
        """The whole and nothing, or the head and the tail."""
        if self.size <= 2 * END:
            return bytes(self._head + self._tail), b""
        return bytes(self._head), bytes(self._tail[-END:])


def _read(head: bytes, tail: bytes) -> AnswerMetadata:
    return usage.of_ends(head, tail) if tail else usage.of_document(head)


class JsonReader(_Ends):
    """Reads an answer that is one JSON document."""

    __slots__ = ()
    feed = _Ends.add

    def metadata(self) -> AnswerMetadata:
        """See Reader."""
        return _read(*self.parts())


class EventReader:
    """Reads an answer that is a stream of events, each of them JSON in one `data:` line."""

    def __init__(self) -> None:
        self._line = _Ends()
        """The line that has begun."""
        self._metadata = AnswerMetadata()
        self._events = 0
        self._is_new = True
        """Whether the stream has yet to say whose it is, and may still do so."""

    def feed(self, data: bytes) -> None:
        """See Reader."""
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        begin = 0
        if end and self._line.size:
            line_end = _LINE_END.search(data)
            assert line_end is not None
            begin = line_end.end()
            self._line.add(data[: line_end.start()])
            self._end_line()
        # Most events bring a word of the answer and nothing else: a glance has to do for them.
        if begin < end and (self._is_new or _USAGE.search(data, begin, end)):
            self._read_lines(data[begin:end])
        if end < len(data):
            self._line.add(data[end:])

    def metadata(self) -> AnswerMetadata:
        """See Reader."""
        self._end_line()
        return self._metadata

    def _end_line(self) -> None:
        head, tail = self._line.parts()
        self._line = _Ends()
        if head.startswith(b"data:"):
            self._read(head[_NAME:], tail)

    def _read_lines(self, lines: bytes) -> None:
        for event in _EVENT.finditer(lines):
            # Bounded as if it had come in pieces, with its name before it.
            if len(event[1]) + _NAME <= 2 * END:
                self._read(event[1], b"")
            else:
                self._read(event[1][: END - _NAME], event[1][-END:])

    def _read(self, head: bytes, tail: bytes) -> None:
        if self._is_new or _USAGE.search(head) or _USAGE.search(tail):
            self._events += 1
            self._metadata = self._metadata.then(_read(head, tail))
            self._is_new = self._events < FIRST_EVENTS and not self._metadata.is_named


class DecompressingReader:
    """Lets `inner` read an answer that comes compressed, as far as it can be decompressed."""

    def __init__(self, inner: Reader, content_encoding: str) -> None:
        self._inner = inner
        self._decompression: Decompression | None
        self._decompression = Decompression(content_encoding, MAX_DECOMPRESSED, MAX_PIECE)

    def feed(self, data: bytes) -> None:
        """See Reader."""
        if self._decompression is None:
            return
        try:
            self._inner.feed(self._decompression.feed(data))
        except UnreadableBody:
            self._decompression = None

    def metadata(self) -> AnswerMetadata:
        """See Reader."""
        return self._inner.metadata()
