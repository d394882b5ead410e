"""Fields of forms, as a browser sends them."""

from starlette.datastructures import FormData


def read_etag(form: FormData) -> str:
    """The etag of a form; where it is missing, one that matches no key."""
    return text(form, "etag") or "missing"


def text(form: FormData, name: str) -> str:
    """A field of a form as it was typed; empty where it is missing."""
    value = form.get(name)
    return value if isinstance(value, str) else ""
