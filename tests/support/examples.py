"""What the properties share that hypothesis tests.

It tries as many examples of each as its profile says: a hundred, and a sixth of them in
`make test`.
"""

import json

from hypothesis import settings
from hypothesis import strategies as st

from policyd.engine.places import IDENTIFIERS


def times(factor: float) -> int:
    """So many times the profile's number of examples."""
    return round(factor * settings.default.max_examples)  # type: ignore[union-attr]  # is there


def _is_nameless(body: bytes) -> bool:
    try:
        content = json.loads(body)
    except ValueError:
        return True
    return not isinstance(content, dict) or content.keys().isdisjoint(IDENTIFIERS)


NAMELESS = st.binary(max_size=50).filter(_is_nameless)
"""Bodies of any bytes but JSON with an identifier: hypothesis tries constants of our code, too."""
