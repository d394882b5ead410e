"""The options that click makes of declared settings, and the variables that they read."""

from pathlib import Path
from typing import Any

import click

from policyd.command.address import Address
from policyd.command.settings import Setting
from policyd.command.units import Size, Span


class Declared(click.Option):
    """An option that knows the unit of its number, for the documentation."""

    def __init__(self, *arguments: Any, unit: str = "", **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.unit = unit


def variables_of(option: click.Parameter) -> tuple[str, ...]:
    """The environment variables that set an option. Of several, the first counts."""
    found = option.envvar or ()
    return (found,) if isinstance(found, str) else tuple(found)


def attributes_of(one: Setting) -> dict[str, Any]:
    """The attributes of the option that click makes of a setting."""
    default = one.default
    if one.words is not None:
        default = next((word for word, value in one.words.items() if value == default), None)
    elif default in ("", ()):
        default = None
    elif one.kind is Address and default is not None:
        default = str(default)
    metavar = one.metavar or ("HOST:PORT" if one.kind is Address else None)
    attributes = {
        "default": default,
        "type": _type(one),
        "metavar": metavar,
        "help": one.help,
        "unit": one.unit,
    }
    return attributes | (
        {"is_flag": True} if one.kind is bool and not (one.words or one.switch) else {}
    )


def _type(one: Setting) -> click.ParamType[Any] | None:
    if one.words is not None:
        return click.Choice(list(one.words), case_sensitive=not one.any_case)
    if one.kind is Path:
        return click.Path(
            path_type=Path, file_okay=one.path != "folder", dir_okay=one.path != "file"
        )
    if one.kind is int:
        if one.unit:
            return Size(one.unit, one.least, one.most)
        return click.IntRange(one.least, one.most)
    if one.kind is float:
        least = one.above if one.least is None else one.least
        if one.unit:
            return Span(one.unit, least, one.most, is_open=one.above is not None)
        return click.FloatRange(least, one.most, min_open=one.above is not None)
    return None
