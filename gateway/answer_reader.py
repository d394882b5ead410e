"""Reads the metadata of an upstream's answer while the answer passes: its ID, model and usage.

The law: reading must not change, delay or hold the answer. A reader sees each piece after it has
gone to the client, and keeps a bounded number of bytes, whatever the answer's size.

- Of a JSON document only the two ends are kept (END bytes each), as the ID and the model stand at
  its beginning and the usage at its end. usage.py reads what lies between two cut ends.
- An event stream is a document a line. Most events carry a word of the answer and no metadata, so
  only the first FIRST_EVENTS of them are parsed, and those in which a regular expression finds a
  usage. An event that comes in pieces is kept like a document, by its two ends.
- A compressed answer is decompressed for the reader alone, up to MAX_DECOMPRESSED bytes in all, and
  MAX_PIECE bytes for one piece: a piece of a kilobyte can expand to a gigabyte.

What cannot be read is unknown; it is never an error.
"""

import re
from typing import Protocol

from gateway import usage
from gateway.usage import AnswerMetadata
from policyd.descriptor.content_encoding import Decompression, UnreadableBody

END = 32 * 1024
"""Bytes that a reader keeps of each end of a document. One of up to twice as many is kept whole."""
MAX_DECOMPRESSED = 64 * 2**20
"""Bytes of a compressed answer that are read, counted once decompressed."""
MAX_PIECE = 4 * 2**20
"""Bytes that one piece of a compressed answer may expand to."""
FIRST_EVENTS = 16
"""Events of a stream that are searched for its ID and its model."""
_LINE_END = re.compile(rb"[\r\n]")
_EVENT = re.compile(rb"(?:\A|[\r\n])data:([^\r\n]*)")
_NAME = len(b"data:")
_USAGE = re.compile(rb'"usage"\s*:\s*\{')


class Reader(Protocol):
    """Reads one answer."""

    def feed(self, data: bytes) -> None:
        """Read the answer's next bytes."""

    def metadata(self) -> AnswerMetadata:
        """The metadata found so far."""


def reader(content_type: str, content_encoding: str) -> Reader | None:
    """The reader of an answer with these headers; None for a kind that carries no metadata."""
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
        """The whole document and b"", or its head and its tail."""
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
        """The line that is not complete yet."""
        self._metadata = AnswerMetadata()
        self._events = 0
        self._is_new = True
        """Whether the next events may still bring the stream's ID and model."""

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
        # Most events carry a word of the answer and no metadata: they are searched, not parsed.
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
            # Bounded like an event that comes in pieces, with its field name before it.
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
    """Lets `inner` read a compressed answer, as far as it can be decompressed within bounds."""

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
