"""The command `policyd-gateway`."""

import click

from policyd.command.configuration import Options
from policyd.command.groups import Lazy, LazyGroup
from policyd.command.versions import version_option

_MODE = (
    "did you mean --default-mode of policyd serve? What policies enforce is set in policyd, for "
    "all API keys or for each"
)
OPTIONS = Options(
    "POLICYD_GATEWAY",
    dict.fromkeys(("default_mode", "enforce", "mode"), _MODE),
    old="GATEWAY",
)
_COMMANDS = {
    "config": Lazy("gateway.config", "config", "Check the settings of policyd-gateway serve."),
    "doctor": Lazy(
        "gateway.doctor",
        "doctor",
        "Look at the gateway as it is deployed here, and say how to fix what is wrong.",
    ),
    "health": Lazy("gateway.health", "health", "Say whether the gateway of this machine is ready."),
    "serve": Lazy("gateway.serve", "serve", "Run the gateway."),
}


@click.group(
    cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@version_option
def main() -> None:
    """policyd-gateway stands before an LLM API and lets through what policyd allows.

    Exit status: 0 if all went well, 1 if not, 2 if the command or its settings are wrong.
    """
    OPTIONS.load_others_by(main.load)
    OPTIONS.check_environment()
