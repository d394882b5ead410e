"""A key's settings as columns of its row.

The columns `mode` and `override` are the setting of the original policy, which every version of
policyd knows; the column `policies` has those of all others, as JSON: {name: [mode, value,
override]}. So the previous version runs on beside this one, and what it changes counts here.
"""

import json
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from policyd.engine.places import accept_problem
from policyd.engine.settings import Setting, Settings
from policyd.engine.states import Mode, Override
from policyd.errors import InvalidArgument
from policyd.policies import TABLE

# SQLite does not bound texts, and keeps the length that a column was made with.
Accept = sa.String(1000).with_variant(sa.String(200), "sqlite")
"""The type of the column `accept`: room for MAX_PLACES places."""
_SEEN = 65536
"""How many different settings are kept, so that keys with equal ones share them."""


# Few keys have settings of their own. Those that keys share are parsed and kept only once.
@lru_cache(maxsize=_SEEN)
def policies(mode: int | None, override: int, others: str) -> Settings:
    """The settings that a row holds."""
    return TABLE.with_original(Mode(mode) if mode else None, Override(override), read_all(others))


def read_all(text: str) -> Settings:
    """The settings in JSON, as in the column `policies`."""
    found = {name: _setting(*given) for name, given in json.loads(text).items()}
    return TABLE.in_order(found.items())


def text_of_all(settings: Settings) -> str:
    """The settings as JSON, for the column `policies`."""
    return json.dumps(dict(settings), separators=(",", ":"))


def _setting(mode: int | None, value: str, override: int | None) -> Setting:
    return Setting(Mode(mode) if mode else None, value, Override(override) if override else None)


def row(settings: Settings) -> dict[str, Any]:
    """The columns that hold these settings."""
    others = dict(settings)
    original = others.pop(TABLE.original.name, Setting())
    return {
        "mode": original.mode,
        "override": original.override or Override.ANY,
        "policies": text_of_all(tuple(others.items())),
    }


@lru_cache(maxsize=_SEEN)
def accept(text: str) -> tuple[str, ...]:
    """The places that a row accepts."""
    return tuple(json.loads(text))


def accept_text(accept: tuple[str, ...]) -> str:
    """The column that holds these places. Raises InvalidArgument."""
    places = tuple(dict.fromkeys(accept))
    if problem := accept_problem(places):
        raise InvalidArgument(problem)
    return json.dumps(places)
