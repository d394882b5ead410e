"""The gateway's settings as JSON values, by which a supervisor passes them to its workers."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from gateway.settings import Settings
from policyd.command.address import Address
from policyd.errors import SettingsError


def dump_settings(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values. They hold the operator's secrets."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {
        name: str(value) if isinstance(value, Address | Path) else value
        for name, value in values.items()
    }


def load_settings(values: Mapping[str, Any]) -> Settings:
    """The settings that dump_settings() gave. Raises SettingsError, as where the process that gave
    them is of a version that has others."""
    kinds = get_type_hints(Settings)
    try:
        return Settings(**{name: _load(kinds.get(name), one) for name, one in values.items()})
    except TypeError as problem:
        raise SettingsError(
            f"this version of the gateway has other settings than the running one ({problem}): "
            "stop the gateway and start it again"
        ) from None


def _load(kind: Any, value: Any) -> Any:
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if isinstance(value, str) and Address in kinds:
        return Address.parse(value, "--listen")
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    if isinstance(value, list):
        return tuple(value)
    return value
