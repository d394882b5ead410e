"""OpenID AuthZEN's Authorization API 1.0: its evaluations -> descriptors, and answers -> decisions.

    subject    type "api_key", id the API key; properties.ip_address
    action     name the HTTP method
    resource   type "path", id the request's path; properties.model, token_limit, choices,
               prompt_characters
    context    has_user, user, safety_identifier, headers (a string or a list of them each),
               request_id, trace_id, user_agent, organization

A user about whom nothing is given is unknown. Members with other names are ignored, as the standard
requires, and null stands for an optional member that is absent, as many languages write it.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from policyd.descriptor.stated import MOST
from policyd.errors import InvalidArgument, InvalidDescriptor, PolicydError
from policyd.v1.policy_pb2 import (
    DECISION_ALLOW,
    EnforceMode,
    EvaluateRequest,
    EvaluateResponse,
    Header,
    PolicyResult,
)

Answer = Callable[[EvaluateRequest], Awaitable[EvaluateResponse]]

EVALUATION = "/access/v1/evaluation"
EVALUATIONS = "/access/v1/evaluations"
CONFIGURATION = "/.well-known/authzen-configuration"
MAX_EVALUATIONS = 1000
SUBJECT = "api_key"
RESOURCE = "path"
# Other actions would be out of scope, and so allowed: "can_call" must not be.
_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
)
_TUPLE = ("subject", "action", "resource", "context")
_REQUIRED = ("type", "id", "name")

_Kind = TypeVar("_Kind")
Json = dict[str, Any]


class _SubjectProperties(msgspec.Struct):
    ip_address: str | None = None


class _Subject(msgspec.Struct):
    type: str
    id: str
    properties: _SubjectProperties | None = None


class _Action(msgspec.Struct):
    name: str


class _ResourceProperties(msgspec.Struct):
    model: str | None = None
    token_limit: int | None = None
    choices: int | None = None
    prompt_characters: int | None = None


class _Resource(msgspec.Struct):
    type: str
    id: str
    properties: _ResourceProperties | None = None


class _Context(msgspec.Struct):
    has_user: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    headers: dict[str, str | list[str]] | None = None
    request_id: str | None = None
    trace_id: str | None = None
    user_agent: str | None = None
    organization: str | None = None


class _Evaluation(msgspec.Struct):
    subject: _Subject
    action: _Action
    resource: _Resource
    context: _Context | None = None


class _Options(msgspec.Struct):
    evaluations_semantic: str | None = None


class _Evaluations(msgspec.Struct):
    evaluations: list[Any] | None = None
    options: _Options | None = None
    subject: Json | None = None
    action: Json | None = None
    resource: Json | None = None
    context: Json | None = None


# For each semantic, the decision after which no further one is made.
_LAST = {"execute_all": None, "deny_on_first_deny": False, "permit_on_first_permit": True}


async def evaluation(body: bytes, answer: Answer) -> Json:
    """The decision on one evaluation. Raises InvalidArgument where `body` holds none."""
    return await _decide(_decode(body, _Evaluation), answer)


async def evaluations(body: bytes, answer: Answer) -> Json:
    """The decisions on several. Raises InvalidArgument where `body` does not hold them."""
    asked = _decode(body, _Evaluations)
    if not asked.evaluations:
        return await evaluation(body, answer)
    if len(asked.evaluations) > MAX_EVALUATIONS:
        raise InvalidArgument(f"send at most {MAX_EVALUATIONS} evaluations at once")
    semantic = asked.options.evaluations_semantic if asked.options else None
    semantic = "execute_all" if semantic is None else semantic
    if semantic not in _LAST:
        raise InvalidArgument(f"options.evaluations_semantic is one of {', '.join(_LAST)}")
    decisions: list[Json] = []
    for item in asked.evaluations:
        decisions.append(await _decide_item(asked, item, answer))
        if decisions[-1]["decision"] is _LAST[semantic]:
            break
    return {"evaluations": decisions}


def configuration(base: str) -> Json:
    """The metadata of the decision point at the URL `base`."""
    return {
        "policy_decision_point": base,
        "access_evaluation_endpoint": base + EVALUATION,
        "access_evaluations_endpoint": base + EVALUATIONS,
    }


def _decode(body: bytes, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise InvalidArgument(f"this is not an evaluation: {problem}") from None


async def _decide_item(asked: _Evaluations, item: object, answer: Answer) -> Json:
    if not isinstance(item, dict):
        return _undecided(400, "this is not an evaluation: it has to be an object")
    merged = {name: _with_default(getattr(asked, name) or {}, item.get(name)) for name in _TUPLE}
    given = {name: value for name, value in merged.items() if value != {}}
    try:
        wanted = msgspec.convert(given, _Evaluation)
    except msgspec.ValidationError as problem:
        return _undecided(400, f"this is not an evaluation: {problem}")
    return await _decide(wanted, answer)


def _with_default(default: Json, own: Any) -> Any:
    """`own` in place of `default`, which fills in what an entity must have."""
    if own is None:
        return default
    if not isinstance(own, dict):
        return own
    return {name: default[name] for name in _REQUIRED if name in default} | own


async def _decide(asked: _Evaluation, answer: Answer) -> Json:
    try:
        response = await answer(_descriptor(asked))
    except (InvalidArgument, InvalidDescriptor) as problem:
        return _undecided(400, str(problem))
    except PolicydError as problem:
        return _undecided(503, str(problem))
    return _decision(response)


def _descriptor(asked: _Evaluation) -> EvaluateRequest:
    if asked.subject.type != SUBJECT or asked.resource.type != RESOURCE:
        raise InvalidArgument(
            f'policyd decides about subjects of type "{SUBJECT}" and resources of type "{RESOURCE}"'
        )
    if asked.action.name.upper() not in _METHODS:
        raise InvalidArgument("action.name is the HTTP method of the request, such as POST")
    if not asked.resource.id.startswith("/"):
        raise InvalidArgument("resource.id is the path of the request, such as /v1/embeddings")
    context = asked.context or _Context()
    subject = asked.subject.properties or _SubjectProperties()
    resource = asked.resource.properties or _ResourceProperties()
    return EvaluateRequest(
        key=asked.subject.id,
        method=asked.action.name,
        path=asked.resource.id,
        headers=[
            Header(name=name, value=value)
            for name, given in (context.headers or {}).items()
            for value in ([given] if isinstance(given, str) else given)
        ],
        has_user=context.has_user,
        user=context.user,
        safety_identifier=context.safety_identifier,
        model=resource.model or "",
        token_limit=_number(resource.token_limit),
        choices=_number(resource.choices),
        prompt_characters=_number(resource.prompt_characters),
        source_ip=subject.ip_address or "",
        user_agent=context.user_agent or "",
        organization=context.organization or "",
        trace_id=context.trace_id or "",
        request_id=context.request_id or "",
    )


def _number(given: int | None) -> int | None:
    """A number as a message can hold it: all beyond its bounds are judged alike."""
    return None if given is None else max(-1, min(given, MOST))


def _undecided(status: int, message: str) -> Json:
    return {"decision": False, "context": {"error": {"status": status, "message": message}}}


def _decision(response: EvaluateResponse) -> Json:
    context: Json = {
        "decision_id": response.decision_id,
        "revision": response.revision,
        "flags": [flag.type for flag in response.flags],
        "policies": [_result(one) for one in response.results],
    }
    if response.decision == DECISION_ALLOW:
        if response.upstream_path:
            context["upstream_path"] = response.upstream_path
        return {"decision": True, "context": context}
    denial = response.denial
    status = str(denial.http_status)
    message = msgspec.json.decode(denial.body)["error"]["message"]
    context["reason_admin"] = {status: response.explanation.summary}
    context["reason_user"] = {status: message}
    context["denial"] = {
        "status": denial.http_status,
        "headers": [{"name": header.name, "value": header.value} for header in denial.headers],
        "body": denial.body.decode(),
    }
    return {"decision": False, "context": context}


def _result(result: PolicyResult) -> Json:
    return {
        "policy": result.policy,
        "mode": EnforceMode.Name(result.mode).removeprefix("ENFORCE_MODE_").lower(),
        "value": result.value,
        "violated": result.violated,
        "message": result.message,
    }
