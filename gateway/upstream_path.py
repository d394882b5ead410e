"""The path of the upstream's URL, which every request upstream begins with."""

from policyd.engine import paths


class UpstreamPath:
    """The path in the operator's --upstream: empty, or in its plain form without a final slash."""

    def __init__(self, path: str) -> None:
        self._path = path

    def absolute(self, path: str) -> str:
        """A client's path with the prefix before it, unless it begins with the prefix already."""
        return path if path.startswith(self._path + "/") else self._path + path

    def restored(self, path: str) -> str | None:
        """The absolute `path` with the prefix in the operator's letter case, whatever its own.

        None where a server might read the path as one outside of the prefix.
        """
        if not self._path:
            return path
        start, rest = path[: len(self._path)], path[len(self._path) :]
        if start.lower() != self._path.lower() or rest[:1] not in ("", "/"):
            return None
        return None if paths.climbs(rest) else self._path + rest
