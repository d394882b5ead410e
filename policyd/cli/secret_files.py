"""Files into which `policyd apply` writes the secrets of keys that it creates.

They are made before any key is, so that no secret is lost because its file cannot be made. No
existing file is overwritten.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

from policyd.errors import SettingsError

_MODE = 0o600


class SecretFiles:
    """The new files of some keys, by the keys' names. Those that hold no secret at the end of the
    `with` block are removed. Raises SettingsError where one exists, or cannot be made."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = dict(paths)
        self._made: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            for name, path in self._paths.items():
                self._made[name] = _new(name, path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name, file in self._made.items():
            os.close(file)
            with suppress(OSError):
                self._paths[name].unlink()
        self._made.clear()

    def write(self, name: str, secret: str) -> Path | None:
        """Write a key's secret to its file; None where the key has no file, or the disk fails."""
        file = self._made.get(name)
        if file is None:
            return None
        try:
            with os.fdopen(os.dup(file), "w", encoding="utf-8") as content:
                content.write(secret + "\n")
            os.fsync(file)
        except OSError:
            return None
        os.close(self._made.pop(name))
        return self._paths[name]


def _new(name: str, path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
    except FileExistsError:
        raise SettingsError(
            f"the secret_file {path} of the key {name!r} exists already, so nothing was changed: "
            "it is never overwritten; move it away, or name another file"
        ) from None
    except OSError as error:
        raise SettingsError(
            f"the secret_file {path} of the key {name!r} cannot be made ({error.strerror}), so "
            "nothing was changed"
        ) from None
