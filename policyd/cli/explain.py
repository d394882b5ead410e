"""`policyd explain`: a decision made now, from the store, without a server."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from policyd.cli import key_settings, options, verdicts
from policyd.cli.key_settings import Change, Changes
from policyd.cli.options import HeaderLine, option
from policyd.descriptor import evaluate_request
from policyd.engine.policy import MODES
from policyd.engine.settings import Settings
from policyd.engine.states import Credential
from policyd.keys import api_key
from policyd.keys.defaults import above
from policyd.policies import TABLE
from policyd.trial import Trial, try_request
from policyd.v1 import policy_pb2 as pb

if TYPE_CHECKING:
    from policyd.store import Store


@click.command()
@option("--key", required=True, help="The API key. POLICYD_KEY keeps it out of the process list.")
@option(
    "--header",
    "headers",
    type=HeaderLine(),
    multiple=True,
    help="A header of the request; may be repeated.",
)
@option("--method", default="", help="The HTTP method.")
@option("--path", default="", help="The path. Without method and path, the request is in scope.")
@option("--has-user/--no-user", default=None, help="Whether the body names an end user.")
@option(
    "--body",
    type=click.File("rb"),
    help="Read all that policies judge from this body; - for stdin.",
)
@key_settings.policy_option
@options.default_mode
@options.common
def explain(
    database_url: str,
    as_json: bool,
    default_mode: str,
    policies: tuple[Change, ...],
    **described: Any,
) -> None:
    """Say what would be decided of a request, and why. Exits with 1 where it would be denied.

    The verdict of every policy is shown. With --policy, the request is decided as if the API key
    had this setting; the key is not changed.
    """
    message = request(**described)
    tried = Changes(key_settings.joined(policies))
    own = TABLE.with_original(MODES[default_mode])
    with options.opened(database_url) as store:
        defaults = above(store.defaults(), own)
        decision, key = decide_now(store, message, tried, defaults)
    if decision.missing:
        raise click.UsageError(
            f"{'; '.join(decision.missing)}: give the request's --method and --path, and its --body"
        )
    if as_json:
        options.print_json(verdicts.as_dict(decision, key))
    else:
        click.echo(verdicts.as_text(decision, key))
    sys.exit(1 if decision.denial else 0)


def request(
    key: str,
    headers: tuple[str, ...],
    method: str,
    path: str,
    has_user: bool | None,
    body: BinaryIO | None,
) -> pb.EvaluateRequest:
    """The request that the command line describes."""
    if (has_user is None) == (body is None):
        raise click.UsageError("give one of --has-user, --no-user and --body FILE")
    message = pb.EvaluateRequest(key=key, method=method, path=path, has_user=has_user)
    message.headers.extend(map(_header, headers))
    if body is not None:
        message.raw_body.content = body.read()
    return message


def _header(line: str) -> pb.Header:
    name, _, value = line.partition(":")
    return pb.Header(name=name.strip(), value=value.strip())


def decide_now(
    store: "Store", message: pb.EvaluateRequest, tried: Changes, defaults: Settings
) -> Trial:
    """The decision, as if the key, where it is in force, had the changes `tried`."""
    credential, key = evaluate_request.credential(message)
    settings = None
    if credential is Credential.GIVEN:
        settings = store.keys.in_force(api_key.digest(key))
    if settings:
        settings = replace(settings, policies=tried.applied(settings.policies))
    return try_request(message, settings, defaults)
