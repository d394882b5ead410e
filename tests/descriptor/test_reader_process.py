"""The process that reads bodies, from its own side: what it answers, and when it frees memory."""

import ctypes
import io
import os

import pytest

from policyd.descriptor import reader_process
from policyd.descriptor.body import read_body
from policyd.descriptor.reader_process import LENGTH, BodyContext, heading, read_answer, serve
from policyd.engine import endpoints
from tests.support.resident import leave_holes, resident

MIB = 2**20
CHAT = BodyContext("application/json", "", endpoints.ENDPOINTS["/chat/completions"], MIB)
UNKNOWN = BodyContext(None, "gzip", None, 5)
BODIES = [(CHAT, b'{"user":"ada","model":"m"}'), (UNKNOWN, b""), (CHAT, b"{}"), (CHAT, b"[" * 300)]


def test_each_body_is_answered() -> None:
    """Each body is read as its heading says, and answered in its turn, until the input ends."""
    theirs, ours = os.pipe()
    with open(theirs, "rb") as bodies, open(ours, "wb") as parent:
        for about, body in BODIES:
            parent.write(heading(about, len(body)) + body)
        parent.close()
        answers = io.BytesIO()
        serve(bodies, answers)
    answers.seek(0)
    for about, body in BODIES:
        size = int.from_bytes(answers.read(LENGTH))
        assert read_answer(answers.read(size)) == read_body(body, *about)
    assert answers.read() == b""


def test_an_answer_does_not_wait() -> None:
    """An answer leaves before the next body is looked for."""
    theirs, ours = os.pipe()
    with open(theirs, "rb") as bodies, open(ours, "wb") as parent:
        parent.write(heading(CHAT, 2) + b"{}")
        parent.close()
        sent = io.BytesIO()
        answers = io.BufferedWriter(sent)
        serve(bodies, answers)
        assert len(sent.getvalue()) > LENGTH
        answers.detach()


class Input(io.FileIO):
    """An input that ends, and keeps how much memory the process had then."""

    def read(self, size: int | None = -1, /) -> bytes:
        self.size, self.resident = size, resident()
        return b""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="it is glibc's")
@pytest.mark.parametrize("is_idle", [True, False])
def test_memory_while_no_body_comes(is_idle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no body comes for a while, memory is given back before the wait goes on."""
    monkeypatch.setattr(reader_process, "_IDLE", 0.01)
    theirs, ours = os.pipe()
    with Input(theirs) as bodies, open(ours, "wb", 0) as parent:
        if not is_idle:
            parent.write(b"a")
        kept = leave_holes()
        before = resident()
        serve(bodies, io.BytesIO())
        assert bodies.size == LENGTH
        freed = before - bodies.resident
        assert freed > 8 * MIB if is_idle else freed < MIB
        del kept
