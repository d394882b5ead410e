"""The web console: API keys, their settings and the decision log, rendered on the server."""

from policyd.console.server import ConsoleServer, console_url, first_link

__all__ = ["ConsoleServer", "console_url", "first_link"]
