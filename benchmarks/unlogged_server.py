"""`policyd serve` that logs nothing, for comparison with one that does."""

from typing import Any
from unittest.mock import patch

from policyd.cli import main
from policyd.decider import Decider
from policyd.keys.defaults import Defaults
from policyd.keys.key_table import KeyTable


class _Unlogged(Decider):
    def __init__(
        self, keys: KeyTable, defaults: Defaults, process: str, _: Any, *others: Any
    ) -> None:
        super().__init__(keys, defaults, process, lambda _: None, *others)


if __name__ == "__main__":
    # Replaced here, so that all else is as in `policyd serve`.
    with patch("policyd.server.server.Decider", _Unlogged):
        main.main()
