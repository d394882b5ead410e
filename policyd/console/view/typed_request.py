"""A request as typed into "Try a request", valid or not, so that it can be shown again."""

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from starlette.datastructures import FormData

from policyd.console.view.forms import text
from policyd.descriptor.headers import KEY_HEADER
from policyd.v1 import policy_pb2 as pb

MAX_BODY = 256 * 2**10
"""Bytes of a body that the page takes. In the form, each may take three bytes."""
MAX_HEADERS = 100
_MAX_PATH = 4000
_MAX_LINE = 4000
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_METHOD = re.compile(r"[A-Za-z]{1,20}")
_CHOSEN = "the key that is chosen by its name"
"""Used in place of the secret, which the console does not have."""
_EXAMPLE = """\
{
  "model": "gpt-4o-mini",
  "messages": [{"role": "user", "content": "Hello"}],
  "user": "alice"
}"""


@dataclass(frozen=True, slots=True)
class TypedRequest:
    """What was typed."""

    key_id: str = ""
    """Empty where the request has no API key."""
    method: str = "POST"
    path: str = "/v1/chat/completions"
    headers: str = "Content-Type: application/json"
    """One header on each line, as "Name: value"."""
    body: str = _EXAMPLE

    @classmethod
    def read(cls, form: FormData) -> Self:
        """What a form holds."""
        typed = {name: text(form, name) for name in ("method", "path", "headers", "body")}
        typed["method"], typed["path"] = typed["method"].strip(), typed["path"].strip()
        return cls(text(form, "key"), **typed)

    def problems(self) -> dict[str, str]:
        """What is wrong with each field, by the field's name."""
        found = {
            "method": "" if _METHOD.fullmatch(self.method) else "Give a method, such as POST.",
            "path": self._path_problem(),
            "headers": self._headers_problem(),
            "body": ""
            if len(self._content()) <= MAX_BODY
            else f"This page takes bodies of up to {MAX_BODY // 1024} KiB.",
        }
        return {name: told for name, told in found.items() if told}

    def _path_problem(self) -> str:
        if not self._target().startswith("/"):
            return "A path begins with a slash, as in /v1/chat/completions."
        return f"Give at most {_MAX_PATH} characters." if len(self.path) > _MAX_PATH else ""

    def _headers_problem(self) -> str:
        lines = self._lines()
        if len(lines) > MAX_HEADERS:
            return f"Give at most {MAX_HEADERS} headers."
        for line in lines:
            name, colon, _ = line.partition(":")
            if not colon or not _NAME.fullmatch(name.strip()):
                return f"“{line[:60]}” is not a header: write each on its own line, as Name: value."
            if len(line) > _MAX_LINE:
                return f"A header has at most {_MAX_LINE} characters here."
            if name.strip().lower() == KEY_HEADER:
                return f"Choose the key by its name above: {KEY_HEADER} is set from that."
        return ""

    def message(self) -> pb.EvaluateRequest:
        """The request as a gateway would describe it, where there are no problems."""
        key = _CHOSEN if self.key_id else ""
        message = pb.EvaluateRequest(key=key, method=self.method.upper(), path=self._target())
        message.headers.extend(pb.Header(name=name, value=value) for name, value in self._pairs())
        message.raw_body.content = self._content()
        return message

    def _target(self) -> str:
        # It may have been copied with its scheme and host.
        if not self.path.lower().startswith(("http://", "https://")):
            return self.path
        try:
            parts = urlsplit(self.path)
        except ValueError:
            return ""
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def _pairs(self) -> list[tuple[str, str]]:
        split = (line.partition(":") for line in self._lines())
        return [(name.strip(), value.strip()) for name, _, value in split]

    def _lines(self) -> list[str]:
        return [line for line in self.headers.splitlines() if line.strip()]

    def _content(self) -> bytes:
        return self.body.encode("utf-8", "surrogatepass")
