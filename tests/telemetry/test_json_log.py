"""The log as JSON: what is in a line, and what never is. The text stays what it was."""

import json
import logging
import re
from collections.abc import Iterator

import pytest

from policyd.telemetry.access import MAX_TEXT, AccessLine, AccessLog, plain
from policyd.telemetry.log import FORMATS, _formatter

KEY = "up-" + "a1B2" * 12
SECRETS = [
    (f"unknown key {KEY}", KEY),
    ("postgresql+psycopg://policyd:hunter22@db:5432/policyd is away", "hunter22"),
    ("postgresql+psycopg://policyd:hunt@er:22@db/policyd is away", "er:22"),
    ("host=db user=policyd password=hunter22 dbname=policyd", "hunter22"),
    ("postgresql://policyd:hunt/er22@db/policyd is away", "er22"),
    ("host=db sslpassword=hunter22 PGPASSWORD=hunter22", "hunter22"),
    (f"GET /v1/key_{KEY}", KEY),
    (f"GET /v1/user{KEY}/x", KEY),
    ("GET /v1/_sk-proj-0123456789abcdefghij", "0123456789"),
    ("host=db password='hunter 22' dbname=policyd", "hunter 22"),
    ("Authorization: Bearer abcdef.ghijkl-123", "abcdef"),
    ("authorization: bearer abcdef.ghijkl-123", "abcdef"),
    ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ("the upstream says: Incorrect API key provided: sk-proj-0123456789abcdefghij", "0123456789"),
]


class Lines(logging.Handler):
    """Keeps what a formatter makes of records."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.setFormatter(_formatter(form))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger of its own, without the handlers of others."""
    logger = logging.getLogger("policyd.test")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.propagate = True
    for handler in list(logger.handlers):
        logger.removeHandler(handler)


def lines(log: logging.Logger, form: str) -> list[str]:
    """The lines that `log` writes from now on."""
    handler = Lines(form)
    log.addHandler(handler)
    return handler.lines


def fail(message: str) -> None:
    raise ValueError(message)


def test_members(log: logging.Logger) -> None:
    """A line has time, level, logger, event and process first, and then what it is about."""
    written = lines(log, "json")
    log.warning("no answer to %s", "POST", extra={"decision_id": "d1", "status": 502, "path": "/"})
    [line] = written
    found = json.loads(line)
    assert list(found)[:5] == ["time", "level", "logger", "event", "process"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])
    assert (found["level"], found["logger"]) == ("warning", "policyd.test")
    assert found["event"] == "no answer to POST"
    assert (found["decision_id"], found["status"], found["path"]) == ("d1", 502, "/")


HOSTILE = {
    "a line break": "a\nb",
    "another": "a\r\nb",
    "an escape sequence": "\x1b[31mred",
    "a line separator": "a\u2028b",
    "a control character": "\x85",
    "half a pair": "\udcff",
    "nothing": "\x00",
    "JSON": '"}{"a":1',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_one_line(name: str) -> None:
    """Nothing that a text holds ends the line, or the object, or reaches a terminal as it is."""
    text = HOSTILE[name]
    record = logging.LogRecord("policyd.test", logging.ERROR, "", 0, "it says %s", (text,), None)
    record.path = text
    line = _formatter("json").format(record)
    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line)
    assert found["event"] == f"it says {text}"
    assert found["path"] == text


def test_a_traceback_is_one_field(log: logging.Logger) -> None:
    """A traceback stands in the line of its error, whole, its end at least."""
    written = lines(log, "json")
    try:
        fail("first\nsecond")
    except ValueError:
        log.exception("a fault")
    try:
        fail("x" * 100_000 + " the end")
    except ValueError:
        log.exception("a fault")
    short, long = map(json.loads, written)
    assert short["traceback"].startswith("Traceback (most recent call last)")
    assert short["traceback"].endswith("ValueError: first\nsecond")
    assert "exc_info" not in short
    assert long["traceback"].endswith(" the end")
    assert len(long["traceback"]) < 50_000


FORGED = "2026-01-01 00:00:00,000 ERROR policyd: forged"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\x85", "\u2028", "\x1b[2K\x1b[G"])
def test_no_forged_line(log: logging.Logger, form: str, end: str) -> None:
    """A text that a line or a traceback quotes begins no line, and steers no terminal."""
    written = lines(log, form)
    log.error("it says %s", f"a{end}{FORGED}")
    try:
        fail(f"a{end}{FORGED}")
    except ValueError:
        log.exception("a fault")
    assert len(written) == 2
    assert not any(line.startswith(FORGED) for one in written for line in one.splitlines())
    assert "\x1b" not in "".join(written)


def test_what_is_long_is_cut(log: logging.Logger) -> None:
    """No text makes a line grow without bound."""
    written = lines(log, "json")
    log.error("it says %s", "x" * 10**6, extra={"path": "y" * 10**6})
    assert len(written[0]) < 20_000


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("text", "secret"), SECRETS, ids=[text[:20] for text, _ in SECRETS])
def test_no_secret(log: logging.Logger, form: str, text: str, secret: str) -> None:
    """A secret that a text holds is in no line: not of the text, a field or a traceback."""
    written = lines(log, form)
    log.error("it says %s", text)
    log.error(text, extra={"path": text})
    try:
        fail(f"first line\n{text}")
    except ValueError:
        log.exception("a fault")
    assert len(written) == 3
    assert secret not in "".join(written)
    assert "***" in written[0]


@pytest.mark.parametrize("room", [*range(990, 1020), *range(8160, 8190)])
def test_no_part_of_a_secret(log: logging.Logger, room: int) -> None:
    """Where a text is cut, no part of a secret is left that nothing tells from other text."""
    written = lines(log, "json")
    text = "x" * room + " ://ada:open.sesame@db/x " + "x" * 1000
    log.error(text, extra={"path": text})
    assert "sesame" not in written[0]


@pytest.mark.parametrize("room", range(32 * 1024 - 40, 32 * 1024))
def test_no_part_of_a_secret_in_a_traceback(log: logging.Logger, room: int) -> None:
    """The same holds for the end of a traceback."""
    written = lines(log, "json")
    try:
        fail("://ada:open.sesame@db/" + "x" * room)
    except ValueError:
        log.exception("a fault")
    assert "sesame" not in written[0]


@pytest.mark.parametrize("room", range(MAX_TEXT - 40, MAX_TEXT))
def test_no_part_of_a_secret_in_an_access_line(room: int) -> None:
    """The same holds for what a client sent, also where it is quoted."""
    assert "sesame" not in plain("x" * room + "://ada:open.sesame@db/x")
    assert "sesame" not in plain("x" * room + " Bearer open.sesame")


def test_text_is_as_it_was(log: logging.Logger) -> None:
    """A line of text is what logging makes of it by the format that observability.md shows; lines
    that follow it are indented."""
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    written = lines(log, "text")
    before = Lines("text")
    before.setFormatter(plain)
    log.addHandler(before)
    log.info("policyd says %s, and ends in %g s", "NOT_SERVING", 5.0, extra={"seconds": 5.0})
    log.warning("https://llm.example.com/v1 is up-to-date: basic facts, the bearer's name")
    try:
        fail("first\nsecond")
    except ValueError:
        log.exception("a fault")
    assert written == [one.replace("\n", "\n    ") for one in before.lines]


def test_access_lines(caplog: pytest.LogCaptureFixture) -> None:
    """A request's line has its fields in JSON, and words in text, empty ones left out."""
    caplog.set_level(logging.INFO, "access")
    line = AccessLine("POST", "/v1/chat/completions", 200, decision_id="d1", seconds=0.333333)
    AccessLog().write(line)
    [record] = caplog.records
    found = json.loads(_formatter("json").format(record))
    assert found.pop("time")
    assert found.pop("process")
    assert found == {
        "level": "info",
        "logger": "access",
        "event": "request",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "decision_id": "d1",
        "seconds": 0.333333,
    }
    text = _formatter("text").format(record)
    assert text.endswith(
        " INFO access: POST /v1/chat/completions 200 decision_id=d1 seconds=0.333333"
    )


@pytest.mark.parametrize("form", FORMATS)
async def test_lines_are_written_together(caplog: pytest.LogCaptureFixture, form: str) -> None:
    """In an event loop many lines are one write, each with its own time, and none is left at the
    end."""
    caplog.set_level(logging.INFO, "access")
    access = AccessLog()
    for number in range(1000):
        access.write(AccessLine("GET", f"/{number}", 200, seconds=0.5))
    access.flush()
    written = "\n".join(_formatter(form).format(record) for record in caplog.records).splitlines()
    assert len(caplog.records) < 20
    assert len(written) == 1000
    if form == "json":
        found = [json.loads(line) for line in written]
        assert [line["path"] for line in found] == [f"/{number}" for number in range(1000)]
        assert [line["time"] for line in found] == sorted(line["time"] for line in found)
    else:
        shape = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO access: GET /\d+ 200 \S+")
        assert all(shape.fullmatch(line) for line in written)


@pytest.mark.parametrize("form", FORMATS)
def test_access_lines_of_hostile_clients(caplog: pytest.LogCaptureFixture, form: str) -> None:
    """A path that looks like fields or lines is one word, and a long one is cut."""
    caplog.set_level(logging.INFO, "access")
    access = AccessLog()
    hostile = ["/a b=c", "/\n2026 INFO x: y", '/"}', "/\x85", "/\\", "/\u2028", f"/{KEY}/x"]
    for path in hostile:
        access.write(AccessLine(plain("PO ST"), plain(path), 200))
    access.write(AccessLine("GET", plain("/" + "a" * 10**6), 200))
    written = [_formatter(form).format(record) for record in caplog.records]
    assert all(line.isascii() and line.isprintable() for line in written)
    assert KEY not in "".join(written)
    assert max(map(len, written)) < 4 * MAX_TEXT
    if form == "json":
        assert all(json.loads(line)["status"] == 200 for line in written)
    else:
        assert all(len(line.partition("access: ")[2].split(" ")) == 3 for line in written)


def test_half_a_surrogate_pair() -> None:
    """A plain text replaces half a surrogate pair, which no file could hold."""
    assert plain("/\udcff") == "/?"


def test_strangers_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """However many requests have no key in force, few lines report them, and none is forgotten."""
    caplog.set_level(logging.INFO, "access")
    access = AccessLog()
    for _ in range(1000):
        access.count_stranger(401)
    access.count_stranger(503)
    access.flush()
    assert [record.getMessage() for record in caplog.records] == [
        "requests without an API key in force: 1 (1 with 401)",
        "requests without an API key in force: 1000 (999 with 401, 1 with 503)",
    ]
