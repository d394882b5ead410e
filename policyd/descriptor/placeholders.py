"""Values of `user` that name no end user: what a client sends where it has filled in nothing.

They count as a user, but they attribute a request to no person; so the console counts them and
warns about them.
"""

import re

_NAMES = frozenset(
    {
        *("undefined", "null", "nil", "none", "nan", "n/a", "unknown", "anonymous", "anon"),
        *("user", "userid", "user id", "user_id", "user-id", "username", "user_name", "user-name"),
        *("your-user-id", "your_user_id", "end-user-id", "end_user_id", "enduser"),
        *("test", "test user", "test-user", "test_user", "testuser", "example", "string", "todo"),
        *("changeme", "placeholder"),
    }
)
"""In lower case."""
_WRAPPED = (("{{", "}}"), ("${", "}"), ("#{", "}"), ("%{", "}"), ("<", ">"), ("[object ", "]"))
"""How templates that were not filled in begin and end, and how JavaScript writes an object."""
# Each is of linear time: no two of its parts can take the same character.
_FORMAT = re.compile(r"%(?:\([^()]*\))?[a-z@]|\{[\w.-]*\}|\$\w+", re.IGNORECASE)
_NOTHING = ("undefined", "null", "nan", "[object object]")
_SEPARATORS = "-_:/|. "


def is_placeholder(user: str) -> bool:
    """Whether `user` is no more than a placeholder. Total, and of linear time."""
    text = user.strip().lower()
    if text in _NAMES or _FORMAT.fullmatch(text):
        return True
    if any(text.startswith(begin) and text.endswith(end) for begin, end in _WRAPPED):
        return True
    if "{{" in text and "}}" in text:
        return True
    # tenant-undefined: a template whose last part was not filled in.
    return any(
        text.endswith(end) and text[-len(end) - 1 : -len(end)] in tuple(_SEPARATORS)
        for end in _NOTHING
    )
