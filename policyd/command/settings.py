"""Settings that are declared once, as the fields of a frozen dataclass.

A field that setting() makes states a setting's default, unit, bounds and description. From these
come its flag, its environment variable, its key in the --config file and its --help (see
configuration.py), its row in docs/configuration.md (docs/tools/configuration.py), and the JSON by
which a supervisor passes settings to its workers: dump() and load(). A field that setting() does
not make is for code alone, such as tests.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from policyd.command.address import Address
from policyd.errors import SettingsError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Settings = TypeVar("_Settings", bound="DataclassInstance")
_DECLARED = "policyd.setting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting, as it is declared."""

    field: str
    """What code calls it."""
    name: str
    """What operators call it, in flags, the environment and the --config file: `log_level`."""
    kind: Any
    """The type of its values, beside None: Address, Path, bool, int, float, str, tuple, an Enum."""
    default: Any
    help: str
    unit: str = ""
    """The unit of a number that is written without one: a key of units.UNITS."""
    metavar: str | None = None
    least: Any = None
    """Its least value. Bounds have the type of its values."""
    above: Any = None
    """Its values are greater than this."""
    most: Any = None
    """Its greatest value."""
    words: Mapping[str, Any] | None = None
    """The words that operators choose from, and the value that each stands for."""
    any_case: bool = False
    """Whether those words may be written in any letter case."""
    path: Literal["any", "file", "folder"] = "any"
    switch: bool = False
    """Whether --no-NAME turns it off."""
    file_help: str = ""
    """Describes --NAME-file, which names a file with the value, as that is a secret; else ""."""

    @property
    def flag(self) -> str:
        """The flag that sets it."""
        return _flag(self.name)

    @property
    def file_name(self) -> str:
        """What operators call the file with its value, where that is a secret."""
        return f"{self.name}_file"

    @property
    def file_flag(self) -> str:
        """The flag that names that file."""
        return _flag(self.file_name)

    def value(self, given: Mapping[str, Any]) -> Any:
        """The value that the options in `given` set, None where it keeps its default.

        Raises SettingsError.
        """
        value = given.get(self.name)
        if self.file_help:
            path = given.get(self.file_name)
            return value or (read_secret(path) if path else None)
        if value is None or (value == "" and self.default is None):
            return None
        if self.words is not None:
            return self.words[value]
        if self.kind is Address:
            return Address.parse(value, self.flag)
        return listed(value) if self.kind is tuple else value


def setting(default: Any, help: str = "", *, hidden: bool = False, **more: Any) -> Any:
    """A field of a settings class: a setting with this default; `more` are fields of Setting.

    Its name is the field's unless `more` gives one. A `hidden` one does not show in repr().
    """
    return field(default=default, repr=not hidden, metadata={_DECLARED: {"help": help, **more}})


def settings_of(kind: "type[DataclassInstance]") -> list[Setting]:
    """The settings that a class declares, in its order."""
    hints = get_type_hints(kind)
    return [_setting(one, hints[one.name]) for one in fields(kind) if _DECLARED in one.metadata]


def _setting(declared: "Field[Any]", hint: Any) -> Setting:
    more = dict(declared.metadata[_DECLARED])
    words = more.pop("words", None)
    if words is not None and not isinstance(words, Mapping):
        words = {word: word for word in words}
    assert declared.default is not MISSING
    return Setting(
        field=declared.name,
        name=more.pop("name", declared.name),
        kind=_kind(hint),
        default=declared.default,
        words=words,
        **more,
    )


def _kind(hint: Any) -> Any:
    if isinstance(hint, UnionType):
        [hint] = (one for one in get_args(hint) if one is not type(None))
    return get_origin(hint) or hint


def build(kind: type[_Settings], given: Mapping[str, Any]) -> _Settings:
    """The settings that options ask for, by the names that operators use; None keeps a default.

    Raises SettingsError.
    """
    values = {one.field: one.value(given) for one in settings_of(kind)}
    return kind(**{name: value for name, value in values.items() if value is not None})


def dump(settings: "DataclassInstance") -> dict[str, Any]:
    """The settings as JSON values, for a worker. They hold the operator's secrets."""
    values = {one.name: getattr(settings, one.name) for one in fields(settings)}
    return {
        name: str(value) if isinstance(value, Address | Path) else value
        for name, value in values.items()
    }


def load(kind: type[_Settings], values: Mapping[str, Any], program: str) -> _Settings:
    """The settings that dump() gave. Raises SettingsError, for example where the process of
    `program` that gave them is of a version with other settings."""
    hints = get_type_hints(kind)
    try:
        return kind(**{name: _load(hints.get(name), value, name) for name, value in values.items()})
    except TypeError as problem:
        raise SettingsError(
            f"this version of {program} has other settings than the running one ({problem}): stop "
            f"{program} and start it again"
        ) from None


def _load(hint: Any, value: Any, name: str) -> Any:
    kind = _kind(hint)
    if value is None or not isinstance(kind, type):
        return value
    if kind is Address:
        return Address.parse(value, _flag(name))
    return kind(value) if issubclass(kind, Path | Enum | tuple) else value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def listed(text: str) -> tuple[str, ...]:
    """The words between the commas of a setting's value; none where it is empty."""
    return tuple(word.strip() for word in text.split(",")) if text.strip() else ()


def read_file(path: Path) -> bytes:
    """The content of a file that a setting names. Raises SettingsError."""
    try:
        return path.read_bytes()
    except OSError as problem:
        raise SettingsError(f"{path} cannot be read: {problem.strerror}") from None


def read_secret(path: Path) -> str:
    """The secret in a file, without blanks and line ends around it. Raises SettingsError."""
    secret = read_file(path).decode("utf-8", "replace").strip()
    if not secret:
        raise SettingsError(f"{path} is empty: it should hold a secret")
    return secret
