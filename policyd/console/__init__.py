"""The web console: API keys, their settings and the decision log, rendered on the server."""

from policyd.console.server import ConsoleServer

__all__ = ["ConsoleServer"]
