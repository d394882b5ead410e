"""The reason phrases on the wire are those of docs/contract.md, section 4, whatever this version
of Python calls them.
"""

import http
import io
import subprocess
import sys
import tokenize
from pathlib import Path
from types import ModuleType

import pytest
from uvicorn.protocols.http import httptools_impl

import gateway
import policyd
from policyd.asgi import protocol, reasons

RENAMED = {
    413: "Request Entity Too Large",
    414: "Request-URI Too Long",
    416: "Requested Range Not Satisfiable",
    422: "Unprocessable Entity",
}
"""What Python 3.13 has renamed."""


def test_every_status() -> None:
    """Each status that Python knows has a phrase, of which all but the renamed are Python's."""
    assert protocol.MAX_HEAD
    for status in range(100, 600):
        line = f"HTTP/1.1 {status} {reasons.PHRASES.get(status, '')}\r\n".encode()
        assert httptools_impl.STATUS_LINE[status] == line
    known = {one.value: one.phrase for one in http.HTTPStatus if one.value not in RENAMED}
    assert known.items() <= reasons.PHRASES.items()
    assert RENAMED.items() <= reasons.PHRASES.items()


def test_another_version_of_python() -> None:
    """Where Python has other names, the servers still write these."""
    program = (
        "import http\n"
        "for one in http.HTTPStatus: one.phrase = 'Renamed'\n"
        "import policyd.asgi.protocol\n"
        "from uvicorn.protocols.http.httptools_impl import STATUS_LINE\n"
        "print(STATUS_LINE[422], STATUS_LINE[200])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=60, check=True
    )
    expected = rb"b'HTTP/1.1 422 Unprocessable Entity\r\n' b'HTTP/1.1 200 OK\r\n'"
    assert done.stdout.strip() == expected


@pytest.mark.parametrize("package", [policyd, gateway])
def test_no_other_phrase(package: ModuleType) -> None:
    """None of our modules asks Python for a reason phrase."""
    folder = Path(str(package.__file__)).parent
    for path in folder.rglob("*.py"):
        content = path.read_bytes()
        if b"phrase" not in content and b"HTTPStatus" not in content:
            continue  # Reading the rest as Python takes a second.
        names = {one.string for one in tokenize.tokenize(io.BytesIO(content).readline)}
        assert not {"phrase", "HTTPStatus"} & names or path.name == "reasons.py", path
