"""Fields of forms, as a browser sends them."""

from starlette.datastructures import FormData

from policyd.engine.model import Mode
from policyd.errors import InvalidArgument


def read_mode(value: str) -> Mode | None:
    """The mode that a form names; empty for the server's default. Raises InvalidArgument."""
    if not value:
        return None
    try:
        return Mode[value.upper()]
    except KeyError:
        raise InvalidArgument("Enforce User IDs is off, audit, enforce or empty") from None


def read_etag(form: FormData) -> str:
    """The etag of a form; where it is missing, one that matches no key."""
    return text(form, "etag") or "missing"


def text(form: FormData, name: str) -> str:
    """A field of a form as it was typed; empty where it is missing."""
    value = form.get(name)
    return value if isinstance(value, str) else ""
