"""The command `policyd`."""

import os

import click

from policyd.command.groups import Lazy, LazyGroup
from policyd.command.private_files import UMASK
from policyd.command.versions import version_option

_COMMANDS = {
    "apply": Lazy(
        "policyd.cli.apply",
        "apply",
        "Make API keys, by their names, and the server's defaults what a file declares.",
    ),
    "audit": Lazy("policyd.cli.audit", "audit", "List what administrators did, newest first."),
    "config": Lazy("policyd.cli.config", "config", "Check the settings of policyd serve."),
    "db": Lazy(
        "policyd.cli.db",
        "db",
        "Look at the database, migrate it, back it up, copy it and shrink it.",
    ),
    "demo": Lazy(
        "policyd.cli.demo",
        "demo",
        "Run policyd, its gateway and a small OpenAI-compatible upstream together, to try them.",
    ),
    "doctor": Lazy(
        "policyd.cli.doctor",
        "doctor",
        "Look at policyd as it is deployed here, and say how to fix what is wrong.",
    ),
    "explain": Lazy(
        "policyd.cli.explain", "explain", "Say what would be decided of a request, and why."
    ),
    "export": Lazy(
        "policyd.cli.apply",
        "export",
        "Write the API keys that are not revoked, and the server's defaults, as a declaration.",
    ),
    "health": Lazy(
        "policyd.cli.health",
        "health",
        "Say whether the policyd on this machine, which has to have --http, is ready.",
    ),
    "keys": Lazy("policyd.cli.keys", "keys", "Create, list, change and revoke API keys."),
    "logs": Lazy(
        "policyd.cli.logs", "logs", "Read the decision log: list it, follow it, export it."
    ),
    "policies": Lazy(
        "policyd.cli.policies",
        "policies",
        "List the policies: what each does, its setting, its header, and the flag that it gives.",
    ),
    "serve": Lazy("policyd.cli.serve", "serve", "Run policyd: answer gateways, and manage keys."),
    "simulate": Lazy(
        "policyd.cli.simulate",
        "simulate",
        "Say what other settings would have done to the logged requests of a key.",
    ),
}


@click.group(
    cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@version_option
def main() -> None:
    """policyd decides whether a request to an LLM API may go upstream.

    A flag wins over the environment (POLICYD_*), which wins over --config FILE (YAML). `serve` and
    `demo` refuse settings that are not theirs; the other commands ignore those of others.

    Exit status: 0 if all went well, 1 if not (`explain`: if the request would be denied), 2 if the
    command or its settings are wrong, 3 if `serve` has ended in order and entries of the log wait
    in --spool for its next start, as the database did not take them.
    """
    # Imported late: --version and --help need no options.
    from policyd.cli.options import OPTIONS

    os.umask(UMASK)
    OPTIONS.load_others_by(main.load)
    OPTIONS.check_environment()
