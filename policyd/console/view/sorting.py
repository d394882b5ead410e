"""Tables that are sorted by a column and shown a page at a time, as a URL asks for them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

_MAX_OFFSET = 1_000_000


@dataclass(frozen=True, slots=True)
class Sorting:
    """Which rows of a table a URL asks for, and in which order."""

    path: str
    sort: str
    order: str
    """up or down."""
    offset: int
    ascending: frozenset[str]
    """The columns that are sorted upwards at first, such as names from A to Z."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """The other parameters of the URL."""

    def url(self, **changes: str) -> str:
        """The URL of this table with some changes, on its first page unless an offset is given."""
        parameters = {**self.kept, "sort": self.sort, "order": self.order}
        given = {name: value for name, value in (parameters | changes).items() if value}
        return f"{self.path}?" + urlencode(given, errors="replace")

    def sort_url(self, column: str) -> str:
        """The URL of this table sorted by a column; in reverse where it is already."""
        turned = "up" if self.order == "down" else "down"
        order = turned if column == self.sort else self._usual(column)
        return self.url(sort=column, order=order)

    def direction(self, column: str) -> str:
        """The value of aria-sort for a column."""
        if column != self.sort:
            return "none"
        return "ascending" if self.order == "up" else "descending"

    @property
    def is_descending(self) -> bool:
        """Whether the rows begin with the largest."""
        return self.order == "down"

    def page(self, step: int, *, has_more: bool) -> tuple[str, str]:
        """The URLs of the previous and the next page, of `step` rows each; "" where there is
        none."""
        previous = self.url(offset=str(max(self.offset - step, 0))) if self.offset else ""
        return previous, self.url(offset=str(self.offset + step)) if has_more else ""

    def _usual(self, column: str) -> str:
        return "up" if column in self.ascending else "down"


def read(
    path: str,
    asked: Mapping[str, str],
    columns: tuple[str, ...],
    ascending: tuple[str, ...],
    kept: Mapping[str, str],
) -> Sorting:
    """What a URL's parameters ask for: where they name no column, the first of `columns`."""
    sort = asked["sort"] if asked.get("sort") in columns else columns[0]
    usual = "up" if sort in ascending else "down"
    order = asked["order"] if asked.get("order") in ("up", "down") else usual
    offset = asked.get("offset", "0")
    is_number = offset.isascii() and offset.isdecimal() and len(offset) < 8
    place = min(int(offset), _MAX_OFFSET) if is_number else 0
    return Sorting(path, sort, order, place, frozenset(ascending), kept)
