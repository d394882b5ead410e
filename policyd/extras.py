"""How the commands start: without a traceback where an extra is not installed, or at Ctrl-C.

The standard library only: `pip install policyd` without an extra installs no more than the client
needs, and yet the commands, too.
"""

import importlib
import sys

INTERRUPTED = 130
"""The exit status at Ctrl-C, as in shells."""
_OWN = ("policyd", "gateway")
_BROUGHT = {
    "aiohttp": "gateway",
    "multidict": "gateway",
    "opentelemetry": "tracing",
    "psycopg": "postgresql",
    "yarl": "gateway",
}
"""The extra that brings a package which the command's own extra does not bring."""


def policyd() -> None:
    """The command `policyd`."""
    _run("policyd.cli.main", "policyd", "server")


def policyd_gateway() -> None:
    """The command `policyd-gateway`."""
    _run("gateway.cli", "policyd-gateway", "gateway")


def _run(module: str, command: str, own: str) -> None:
    try:
        importlib.import_module(module).main()
    except KeyboardInterrupt:  # While its modules load. See command/groups.py, too.
        sys.exit(INTERRUPTED)
    except ModuleNotFoundError as problem:
        package = (problem.name or "").partition(".")[0]
        if package in ("", *_OWN, *sys.stdlib_module_names):
            raise
        sys.exit(f"{command} {lacks(package, _BROUGHT.get(package, own))}")


def lacks(package: str, extra: str) -> str:
    """What an error says about a package that is not installed."""
    return f"needs {package}, which is not installed: pip install 'policyd[{extra}]'"
