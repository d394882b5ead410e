"""Forms that were sent after their session had ended: the next sign-in brings them back, filled in.

A form has no effect until the administrator has seen it again and sent it. In order:

1. The form arrives without a session. The sign-in page carries it, as hidden text.
2. The administrator signs in. The form is held in memory for a short time, under a random ID.
3. The browser goes to the page of the form, which shows it with what was typed.

Before the sign-in nothing of a form is held here, so that strangers take no memory. Passwords and
secrets are never kept: only the pages listed here take part, and what may be a secret is left out.
"""

import re
import secrets
import threading
import time
from collections import OrderedDict
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import FormData
from starlette.requests import Request

from policyd.telemetry.redaction import redacted

MAX_FORM = 24 * 2**10
"""Bytes of a form that is carried. Written into another form they are up to three times as many."""
_MAX_FIELDS = 500
_MAX_FORMS = 16
_SECONDS = 600.0
"""Seconds that a form waits for its page."""
_PAGES = {"/keys": "/keys/new", "/try": "/try"}
"""The forms that come back, by the path they are sent to, and the page that shows each."""
_KEY = re.compile(r"/keys/key_[0-9a-f]+")
"""A key's settings, which are shown at the path that they are sent to."""
_SECRET = re.compile(r"pass|secret|token|digest|current|repeated", re.IGNORECASE)
_SECRET_HEADER = re.compile(r"auth|cookie|cred|key|pass|secret|session|sign|token", re.IGNORECASE)
_HEADERS = "headers"
"""The field that holds headers, one on each line."""


def page_of(path: str) -> str:
    """The page that shows the form that is sent to `path`; "" where it does not come back."""
    return path if _KEY.fullmatch(path) else _PAGES.get(path, "")


def is_page(path: str) -> bool:
    """Whether the page at `path` shows forms that come back."""
    return path in _PAGES.values() or page_of(path) == path


async def carried(request: Request) -> str:
    """The form of a request without a session, URL-encoded; "" where it is too long, or not one
    of those that come back."""
    length = request.headers.get("content-length", "")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_form = kind == "application/x-www-form-urlencoded"
    is_short = length.isascii() and length.isdecimal() and int(length) <= MAX_FORM
    if not (page_of(request.url.path) and is_form and is_short):
        return ""
    return without_secrets((await request.body()).decode("ascii", "replace"))


def without_secrets(form: str) -> str:
    """A form, URL-encoded, without the fields and the lines that may hold a secret."""
    try:
        fields = parse_qsl(form, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError:
        return ""
    kept = [
        (name, redacted(_without_secret_headers(value) if name == _HEADERS else value))
        for name, value in fields
        if not _SECRET.search(name)
    ]
    return urlencode(kept, errors="replace")


def _without_secret_headers(value: str) -> str:
    lines = value.splitlines(keepends=True)
    return "".join(line for line in lines if not _SECRET_HEADER.search(line.partition(":")[0]))


class KeptForms:
    """The forms that wait for their pages, after a sign-in. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forms: OrderedDict[str, tuple[float, str, str]] = OrderedDict()

    def keep(self, page: str, form: str) -> str:
        """Hold a form, URL-encoded, for the page at this path. Returns its ID."""
        identifier = secrets.token_hex(8)
        with self._lock:
            self._forms[identifier] = (time.monotonic() + _SECONDS, page, form)
            while len(self._forms) > _MAX_FORMS:
                self._forms.popitem(last=False)
        return identifier

    def of(self, request: Request) -> FormData | None:
        """The form that the request's page is to show; None where there is none (any more)."""
        with self._lock:
            until, page, form = self._forms.get(
                request.query_params.get("typed", ""), (0.0, "", "")
            )
        if page != request.url.path or until < time.monotonic():
            return None
        return FormData([*parse_qsl(form, keep_blank_values=True)])
