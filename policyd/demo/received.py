"""A request as the demo upstream receives it."""

import zlib
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from policyd.asgi.body import ClientGone, Incoming, Receive
from policyd.demo.replies import ApiError, Json


@dataclass(slots=True)
class Received:
    """One request: made when its head has arrived, and growing while its body arrives."""

    method: str
    target: bytes  # the raw path, and after a `?` the query
    headers: list[tuple[bytes, bytes]]  # in order; the server has put the names in lower case
    body: bytearray = field(default_factory=bytearray)  # its beginning, up to a bound
    length: int = 0  # bytes of the whole body so far
    complete: bool = False  # whether the whole body is in

    def header(self, name: bytes) -> str:
        """The first value of a header, by its lower-case name, or an empty string."""
        return next((value.decode("latin-1") for key, value in self.headers if key == name), "")

    async def fill(self, receive: Receive, keep: int) -> None:
        """Count the body's bytes, and keep the first `keep` of them, until its end or until the
        client leaves."""
        coming = Incoming(receive)
        with suppress(ClientGone):
            while not self.complete:
                piece = await coming.piece()
                self.body += piece[: max(keep - len(self.body), 0)]
                self.length, self.complete = coming.received, not coming.more


def read_json(received: Received, limit: int) -> Json:
    """The body, of at most `limit` bytes, as the object that it has to be. Raises ApiError."""
    if received.length > limit:
        raise ApiError(413, f"The body of your request is over {limit} bytes.")
    try:
        fields = msgspec.json.decode(_decoded(received, limit))
    except (ValueError, RecursionError):
        message = "The body of your request could not be parsed as JSON."
        raise ApiError(400, message) from None
    if not isinstance(fields, dict):
        raise ApiError(400, "The body of your request must be a JSON object.")
    return fields


def _decoded(received: Received, limit: int) -> bytes | bytearray:
    coding = received.header(b"content-encoding").lower()
    if coding in ("", "identity"):
        return received.body
    if coding not in ("gzip", "deflate"):
        raise ApiError(415, "The demo upstream reads the content encodings gzip and deflate only.")
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: tells gzip and zlib apart by itself
    try:
        body = decoder.decompress(received.body, limit)
    except zlib.error:
        raise ApiError(400, f"The body of your request is not {coding}.") from None
    if not decoder.eof:
        raise ApiError(400, f"The {coding} body is cut short, or over {limit} bytes.")
    return body
