"""What `policyd explain` says: a decision made now, from the store, without a server."""

from typing import Any, BinaryIO

import click

from policyd.descriptor.evaluate_request import describe
from policyd.engine.decision import decide
from policyd.engine.model import Credential, Decision, KeySettings, Mode
from policyd.keys import api_key
from policyd.store import Store
from policyd.v1 import policy_pb2 as pb


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
    store: Store, question: pb.EvaluateRequest, default: Mode
) -> tuple[Decision, KeySettings | None]:
    """The decision, and the settings of the key if it is in force."""
    described = describe(question).descriptor
    settings = None
    if described.credential is Credential.GIVEN:
        wanted = api_key.digest(described.key)
        changed = store.keys.changes_since(0).changed
        settings = next((one.settings for one in changed if one.digest == wanted), None)
    return decide(described, settings, default), settings


def as_dict(decision: Decision, key: KeySettings | None) -> dict[str, Any]:
    """The decision as JSON values."""
    why = decision.explanation
    refusal = decision.denial
    return {
        "decision": "deny" if refusal else "allow",
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
        if refusal is None
        else {
            "http_status": refusal.status,
            "headers": dict(refusal.headers),
            "body": refusal.body.decode(),
        },
    }


def as_text(decision: Decision, key: KeySettings | None) -> str:
    """The decision for people."""
    facts = as_dict(decision, key)
    lines = [decision.explanation.summary, ""]
    for name in ("decision", "key_id", "mode", "source", "operation", "user_state"):
        lines.append(f"{name.replace('_', ' '):12}{facts[name] or '-'}")
    lines.append(f"{'flags':12}{', '.join(facts['flags']) or '-'}")
    if decision.denial:
        lines.append(f"{'response':12}{decision.denial.status} {decision.denial.body.decode()}")
    return "\n".join(lines)
