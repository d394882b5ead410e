"""`policyd explain`: a decision made now, from the store, without a server."""

import sys
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from policyd.cli import options
from policyd.cli.options import HeaderLine, option
from policyd.descriptor.evaluate_request import read
from policyd.engine.decision import decide
from policyd.engine.model import Credential, Decision, KeySettings, Mode
from policyd.keys import api_key
from policyd.settings import MODES
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
@option("--body", type=click.File("rb"), help="Read the end user from this body; - for stdin.")
@options.default_mode
@options.common
def explain(database_url: str, as_json: bool, default_mode: str, **described: Any) -> None:
    """Say what would be decided of a request, and why. Exits with 1 where it would be denied."""
    message = request(**described)
    with options.opened(database_url) as store:
        decision, key = decide_now(store, message, MODES[default_mode])
    if as_json:
        options.print_json(as_dict(decision, key))
    else:
        click.echo(as_text(decision, key))
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
    store: "Store", message: pb.EvaluateRequest, default: Mode
) -> tuple[Decision, KeySettings | None]:
    """The decision, and the settings of the key if it is in force."""
    decision_input = read(message).decision_input
    settings = None
    if decision_input.credential is Credential.GIVEN:
        digest = api_key.digest(decision_input.key)
        changed = store.keys.changes_since(0).changed
        settings = next((one.settings for one in changed if one.digest == digest), None)
    return decide(decision_input, settings, default), settings


def as_dict(decision: Decision, key: KeySettings | None) -> dict[str, Any]:
    """The decision as JSON values."""
    why = decision.explanation
    denial = decision.denial
    return {
        "decision": "deny" if denial else "allow",
        "would_deny": decision.would_deny,
        "key_id": key.key_id if key else None,
        "mode": why.mode.name.lower() if why.mode else None,
        "source": why.source.name.lower() if why.source else None,
        "override_ignored": why.ignored.name.lower() if why.ignored else None,
        "in_scope": why.in_scope,
        "operation": why.operation or None,
        "user_state": why.user_state.name.lower(),
        "identifier": why.identifier or None,
        "flags": [flag.type for flag in decision.flags],
        "summary": why.summary,
        "denial": None
        if denial is None
        else {
            "http_status": denial.status,
            "headers": dict(denial.headers),
            "body": denial.body.decode(),
        },
    }


def as_text(decision: Decision, key: KeySettings | None) -> str:
    """The decision for people."""
    shown = as_dict(decision, key)
    lines = [decision.explanation.summary, ""]
    for name in ("decision", "key_id", "mode", "source", "operation", "user_state"):
        lines.append(f"{name.replace('_', ' '):12}{shown[name] or '-'}")
    lines.append(f"{'flags':12}{', '.join(shown['flags']) or '-'}")
    if decision.denial:
        lines.append(f"{'response':12}{decision.denial.status} {decision.denial.body.decode()}")
    return "\n".join(lines)
