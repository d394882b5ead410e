"""Numbers with a unit, as operators write them: `4GiB`, `90d`, `500ms`.

A number without a unit is in the setting's own unit, so settings that were written before units
were accepted keep their meaning.
"""

import re
from fractions import Fraction
from typing import Any

import click

_SECOND = {
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "min": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(24 * 3600),
    "w": Fraction(7 * 24 * 3600),
}
_BYTE = {
    "b": Fraction(1),
    **{f"{letter}ib": Fraction(2 ** (10 * n)) for n, letter in enumerate("kmgt", 1)},
    **{f"{letter}i": Fraction(2 ** (10 * n)) for n, letter in enumerate("kmgt", 1)},
    **{f"{letter}b": Fraction(10 ** (3 * n)) for n, letter in enumerate("kmgt", 1)},
}


def _of(second: int) -> dict[str, Fraction]:
    return {name: size / second for name, size in _SECOND.items()}


UNITS = {"bytes": _BYTE, "seconds": _SECOND, "hours": _of(3600), "days": _of(24 * 3600)}
"""By a setting's own unit: how much of it each unit is."""
EXAMPLES = {
    "bytes": "512MiB, 4GiB or 2GB",
    "seconds": "500ms, 30s, 5m or 1h",
    "hours": "30m, 24h or 7d",
    "days": "36h, 90d or 12w",
}
_WITH_UNIT = re.compile(r"([0-9]+|[0-9]*\.[0-9]+)\s*([A-Za-z]+)")


class _Quantity(click.ParamType[Any]):
    """Reads a number with a unit as one of `unit`, and leaves its bounds to click's type."""

    unit: str

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """See click.ParamType."""
        if isinstance(value, str):
            value = self._plain(value.strip(), param, ctx)
        return super().convert(value, param, ctx)

    def _plain(self, text: str, param: Any, ctx: Any) -> Any:
        found = _WITH_UNIT.fullmatch(text)
        # Letter case counts for times: an M may be meant as months.
        name = "" if found is None else found[2].lower() if self.unit == "bytes" else found[2]
        factor = UNITS[self.unit].get(name)
        if found is None or factor is None:
            if _is_number(text):
                return text
            self.fail(
                f"{text!r} is not understood: give a number of {self.unit}, or one with a unit, "
                f"such as {EXAMPLES[self.unit]}",
                param,
                ctx,
            )
        return self._number(Fraction(found[1]) * factor, text, param, ctx)

    def _number(self, number: Fraction, text: str, param: Any, ctx: Any) -> Any:
        return float(number)


class Size(_Quantity, click.IntRange):
    """A whole number of `unit`, within bounds."""

    def __init__(self, unit: str, least: int | None, most: int | None) -> None:
        super().__init__(least, most)
        self.unit = unit

    def _number(self, number: Fraction, text: str, param: Any, ctx: Any) -> int:
        if number.denominator != 1:
            self.fail(f"{text!r} is no whole number of {self.unit}", param, ctx)
        return int(number)


class Span(_Quantity, click.FloatRange):
    """A number of `unit`, within bounds; above `least` if `is_open`."""

    def __init__(
        self, unit: str, least: float | None, most: float | None, *, is_open: bool
    ) -> None:
        super().__init__(least, most, min_open=is_open)
        self.unit = unit


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
