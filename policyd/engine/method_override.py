"""Method overrides: what makes some servers take a request with another method for a POST.

Some take the method from a header, or from a field `_method` of the query string or of a form. A
request that they may take for a POST is judged as one. A form's fields are not looked at: any form
may have the field, and no endpoint takes a form by another method.
"""

from collections.abc import Sequence
from itertools import product
from urllib.parse import unquote_plus

Headers = Sequence[tuple[str, str]]

_POST = "post"
_FIELD = "_method"
_DESCRIBED = (("x-http-method-override", "POST"),)

# Some upstreams read an underscore as a dash.
HEADERS = frozenset(
    name.replace("-", "{}").format(*joints)
    for name in ("x-http-method-override", "x-http-method", "x-method-override")
    for joints in product("-_", repeat=name.count("-"))
)
"""The headers that override the method, in lower case."""


def is_post(method: str) -> bool:
    """Whether `method` itself is POST; an unknown one counts as POST."""
    return not method or method.strip().upper() == "POST"


def in_force(method: str, headers: Headers, query: str) -> str:
    """The method that a request is judged by."""
    return "POST" if overriding(method, headers, query) else method


def overriding(method: str, headers: Headers, query: str) -> Headers:
    """The header by which a descriptor says that some server may take its request for a POST.

    Empty where the method itself is POST, or nothing overrides it.
    """
    if is_post(method):
        return ()
    is_overridden = any(_overrides(name.lower(), value.lower()) for name, value in headers)
    return _DESCRIBED if is_overridden or _is_in(query) else ()


def _overrides(name: str, value: str) -> bool:
    return _POST in value if name in HEADERS else name == "content-type" and "form" in value


def _is_in(query: str) -> bool:
    fields = unquote_plus(query).lower()
    return _FIELD in fields and _POST in fields
