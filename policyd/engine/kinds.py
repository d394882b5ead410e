"""Kinds of settings: what a policy's setting may be, and how it is read, compared and overridden.

A value is text wherever it is stored or sent, and only its kind reads it. Each kind has one
canonical text for a value, so that equal settings are equal texts.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from policyd.engine.states import Mode

MAX_LIMIT = 1_000_000_000
"""The largest limit."""
MAX_PATTERNS = 1000
"""Patterns or names in one list."""
MAX_PATTERN = 256
"""Characters of a pattern or a name."""


class Wanted(NamedTuple):
    """What an override header asks for."""

    mode: Mode
    value: str


class Kind(Protocol):
    """What a setting may be."""

    @property
    def usage(self) -> str:
        """How people write a setting: "off, audit:N or enforce:N"."""

    @property
    def value_usage(self) -> str:
        """What its value is, for forms and help. Empty: it has none."""

    @property
    def example(self) -> str:
        """A value, for forms and help. Empty: it has none."""

    @property
    def header_usage(self) -> str:
        """What its override header may hold. Empty: it has no such header."""

    def canonical(self, text: str) -> str:
        """A value in its canonical form. Raises ValueError, which names cause and fix."""

    def parse(self, value: str) -> Any:
        """What a policy's decide() gets. Raises ValueError where `value` is not canonical."""

    def wanted(self, header: str) -> Wanted | None:
        """What a value of the override header asks for; None where it is not valid."""

    def is_as_strict(self, value: str, than: str) -> bool:
        """Whether one value denies all that the other one does."""


class Switch:
    """On or off: a setting without a value. Its header is true or false."""

    usage = "off, audit or enforce"
    value_usage = example = ""
    header_usage = "true or false"

    def canonical(self, text: str) -> str:
        if text:
            raise ValueError(f"it takes no value, but {text[:64]!r} was given")
        return ""

    def parse(self, value: str) -> bool:
        self.canonical(value)
        return True

    def wanted(self, header: str) -> Wanted | None:
        return _SWITCHED.get(header.lower())

    def is_as_strict(self, value: str, than: str) -> bool:
        return True


_SWITCHED = {"true": Wanted(Mode.ENFORCE, ""), "false": Wanted(Mode.OFF, "")}
_LOOSE = "".join(map(chr, range(0x21))) + "\x7f\u00a0\ufeff"
_STARS = re.compile(r"\*+")
_LIMIT = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)


class Limit:
    """A whole number that must not be exceeded. A header of 0 switches it off."""

    usage = "off, audit:N or enforce:N"
    value_usage = f"a whole number from 1 to {MAX_LIMIT:,}"
    example = "500"
    header_usage = f"a whole number up to {MAX_LIMIT:,}; 0 switches it off"

    def canonical(self, text: str) -> str:
        number = text.strip()
        if not _LIMIT.fullmatch(number) or int(number) > MAX_LIMIT:
            raise ValueError(f"a limit is {self.value_usage}, not {text[:64]!r}")
        return number

    def parse(self, value: str) -> int:
        return int(self.canonical(value))

    def wanted(self, header: str) -> Wanted | None:
        if header == "0":
            return Wanted(Mode.OFF, "")
        if not _LIMIT.fullmatch(header) or int(header) > MAX_LIMIT:
            return None
        return Wanted(Mode.ENFORCE, header)

    def is_as_strict(self, value: str, than: str) -> bool:
        return int(value) <= int(than)


class WithoutHeader:
    """A kind whose settings no header overrides. Only equal values count as equally strict."""

    header_usage = ""

    def wanted(self, header: str) -> Wanted | None:
        """No header asks for anything."""
        return None

    def is_as_strict(self, value: str, than: str) -> bool:
        """Whether they are equal."""
        return value == than


class Patterns(WithoutHeader):
    """A list of patterns, in which * stands for any characters. decide() gets a function that says
    whether one of them matches a text; with `ignores_case`, in any letter case and trimmed."""

    usage = "off, audit:PATTERN,… or enforce:PATTERN,…"
    value_usage = "patterns with commas between them, in which * stands for any characters"
    example = "gpt-4*,o1"

    def __init__(self, *, ignores_case: bool = False) -> None:
        self._ignores_case = ignores_case

    def canonical(self, text: str) -> str:
        return ",".join(_listed(text, "pattern"))

    def parse(self, value: str) -> Callable[[str], bool]:
        patterns = [_STARS.sub("*", one) for one in self.canonical(value).split(",")]
        folded = [one.casefold() for one in patterns] if self._ignores_case else patterns
        plain = frozenset(one for one in folded if "*" not in one)
        globs = [tuple(one.split("*")) for one in folded if "*" in one]

        @lru_cache(maxsize=256)
        def matches(text: str) -> bool:
            # Some upstreams trim a name, and some ignore its letter case.
            text = text.strip(_LOOSE).casefold() if self._ignores_case else text
            return text in plain or any(_matches(glob, text) for glob in globs)

        return matches


class Names(WithoutHeader):
    """A list of names out of `choices`. decide() gets them as a set."""

    def __init__(self, what: str, choices: Iterable[str]) -> None:
        self.choices = tuple(sorted(choices))
        self._what = what
        self.usage = f"off, audit:{what.upper()},… or enforce:{what.upper()},…"
        self.value_usage = f"{what}s with commas between them: {', '.join(self.choices)}"
        self.example = ",".join(self.choices[:2])

    def canonical(self, text: str) -> str:
        names = _listed(text, self._what)
        if unknown := [name for name in names if name not in self.choices]:
            known = ", ".join(self.choices)
            raise ValueError(
                f"there is no {self._what} {unknown[0]!r}: the {self._what}s are {known}"
            )
        return ",".join(names)

    def parse(self, value: str) -> frozenset[str]:
        return frozenset(self.canonical(value).split(","))


class Anything(WithoutHeader):
    """The setting of a policy that this version does not know, kept as it is."""

    usage = value_usage = example = ""

    def canonical(self, text: str) -> str:
        return text

    def parse(self, value: str) -> str:
        return value


def _listed(text: str, what: str) -> list[str]:
    """The parts of a list, each once, in the order given."""
    parts = list(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))
    if not parts:
        raise ValueError(f"the list is empty: name at least one {what}")
    if len(parts) > MAX_PATTERNS:
        raise ValueError(f"the list has {len(parts):,} parts: give at most {MAX_PATTERNS:,}")
    for part in parts:
        if len(part) > MAX_PATTERN or not part.isprintable():
            raise ValueError(
                f"a {what} has up to {MAX_PATTERN} printable characters, not {part[:64]!r}"
            )
    return parts


def _matches(glob: tuple[str, ...], text: str) -> bool:
    """Whether `text` holds the parts of a pattern in their order, from its beginning to its end.

    The leftmost place for each part will do, so none is tried again.
    """
    first, *middle, last = glob
    if not text.startswith(first):
        return False
    position = len(first)
    for part in middle:
        found = text.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return len(text) - len(last) >= position and text.endswith(last)
