"""The path of the upstream's URL, behind which every request goes."""

from policyd.engine import paths


class Prefix:
    """The path that the operator wrote: empty, or in its plain form with no slash at its end."""

    def __init__(self, path: str) -> None:
        self._path = path

    def absolute(self, path: str) -> str:
        """A client's path as it goes upstream: behind the operator's, unless it has that."""
        return path if path.startswith(self._path + "/") else self._path + path

    def restored(self, path: str) -> str | None:
        """The absolute `path` that begins as the operator wrote it, whatever its letter case.

        None where a server might read a path that leads out of what the operator chose.
        """
        if not self._path:
            return path
        start, rest = path[: len(self._path)], path[len(self._path) :]
        if start.lower() != self._path.lower() or rest[:1] not in ("", "/"):
            return None
        return None if paths.climbs(rest) else self._path + rest
