"""What can be the case: modes, overrides, sources, and the states of what a request holds.

The enumerations have the numbers of protos/policyd/v1, so that a message's values need no table.
"""

from enum import IntEnum
from typing import NamedTuple


class _Number(IntEnum):
    # In Python, enumerations hash by name; as numbers they are looked up several times as fast.
    __hash__ = int.__hash__


class Mode(_Number):
    """How a policy treats a request that violates it. A larger one is stricter."""

    OFF = 1
    AUDIT = 2
    ENFORCE = 3


class Override(_Number):
    """Whether a request may override a policy's setting by the policy's header."""

    ANY = 1
    TIGHTEN_ONLY = 2
    LOCKED = 3


class Source(_Number):
    """Where the setting in force came from."""

    HEADER = 1
    KEY = 2
    DEFAULT = 3
    ROUTE = 4


class Ignored(_Number):
    """Why an override header did not count."""

    NOT_IGNORED = 0
    LOCKED = 1
    TIGHTEN_ONLY = 2
    INVALID = 3


class UserState(_Number):
    """What is known about an end-user identifier. Only VALID counts as a user."""

    UNKNOWN = 0
    VALID = 1
    ABSENT = 2
    EMPTY = 3
    BLANK = 4
    NOT_STRING = 5
    TOO_LONG = 6
    DUPLICATE = 7
    NOT_JSON = 8
    NOT_OBJECT = 9
    TOO_COMPLEX = 10
    BAD_FORM = 11
    BAD_ENCODING = 12
    UNSUPPORTED_ENCODING = 13
    TOO_LARGE = 14

    @property
    def is_unreadable(self) -> bool:
        """Whether the body could not be read, so that its attributes are unknown."""
        return self >= _FIRST_UNREADABLE


# Python takes longer to look up a member of an enumeration than to compare it.
_FIRST_UNREADABLE = UserState.NOT_JSON


class ModelState(_Number):
    """What is known about the model that a request names."""

    UNKNOWN = 0
    GIVEN = 1
    ABSENT = 2
    NOT_STRING = 3
    CONFLICTING = 4
    """There are two models that differ, or a server may find none."""
    TOO_LONG = 5


class NumberState(_Number):
    """What is known about a number that a policy judges."""

    UNKNOWN = 0
    GIVEN = 1
    ABSENT = 2
    INVALID = 3
    """It is not a valid whole number, or cannot be counted."""


class Number(NamedTuple):
    """A number that a policy judges."""

    state: NumberState
    value: int = 0
    """The number, where it is GIVEN."""


UNKNOWN_NUMBER = Number(NumberState.UNKNOWN)


class Credential(_Number):
    """How the request names its API key."""

    GIVEN = 0
    MISSING = 1
    CONFLICTING = 2
