"""PolicyService: descriptor in, decision out."""

import itertools
import secrets
import time
from functools import lru_cache
from typing import Any

from policyd import api_keys, descriptor, endpoints
from policyd.decision import decide
from policyd.errors import InvalidArgument, InvalidDescriptor, PolicydError
from policyd.key_table import KeyTable
from policyd.model import (
    SAFETY_IDENTIFIER,
    Credential,
    Decision,
    Descriptor,
    Mode,
    Target,
    UserState,
)
from policyd.services.errors import status_of
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceServicer

MAX_BATCH = 1000
"""Items in one BatchEvaluate."""
MAX_WAIT = 5.0
"""Seconds to wait for a revision that a caller asks for, where its own deadline is no sooner."""
_STATES = tuple(UserState)
_TYPE = "content-type"
_ENCODING = "content-encoding"
_UNKNOWN = UserState.UNKNOWN


class PolicyServicer(PolicyServiceServicer):
    """Decides with the settings in `keys`; `default` is the mode of keys that set none."""

    def __init__(self, keys: KeyTable, default: Mode) -> None:
        self._keys = keys
        self._default = default
        self._ids = _DecisionIds()

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:
        """See policy.proto."""
        if request.min_revision > self._keys.revision:
            await self._reach(request.min_revision, context)
        return self._evaluate(request)

    async def BatchEvaluate(
        self, request: pb.BatchEvaluateRequest, context: Any
    ) -> pb.BatchEvaluateResponse:
        """See policy.proto."""
        items = request.items
        if len(items) > MAX_BATCH:
            raise InvalidArgument(f"a batch has at most {MAX_BATCH} items, not {len(items)}")
        if len({item.id for item in items}) < len(items):
            raise InvalidArgument("each item of a batch needs an id of its own")
        wanted = max((item.request.min_revision for item in items), default=0)
        if wanted > self._keys.revision:
            await self._reach(wanted, context)
        return pb.BatchEvaluateResponse(results=[self._result(item) for item in items])

    async def _reach(self, revision: int, context: Any) -> None:
        left = context.time_remaining()
        # A little before the caller gives up, so that it gets the reason.
        await self._keys.reach(revision, MAX_WAIT if left is None else min(MAX_WAIT, left * 0.9))

    def _result(self, item: pb.BatchEvaluateItem) -> pb.BatchEvaluateResult:
        try:
            return pb.BatchEvaluateResult(id=item.id, response=self._evaluate(item.request))
        except PolicydError as error:
            code, message, reason = status_of(error)
            status = pb.ItemStatus(code=code.value[0], message=message, reason=reason)
            return pb.BatchEvaluateResult(id=item.id, status=status)

    def _evaluate(self, request: pb.EvaluateRequest) -> pb.EvaluateResponse:
        described = describe(request)
        settings = None
        if described.credential is Credential.GIVEN:
            settings = self._keys.settings(api_keys.digest(described.key))
        decision = decide(described, settings, self._default)
        response = pb.EvaluateResponse()
        response.CopyFrom(_template(decision))
        response.decision_id = self._ids.next()
        response.revision = self._keys.revision
        if settings is not None:
            response.api_key_id = settings.key_id
        if described.target.path:
            response.upstream_path = described.target.path
        return response


class _DecisionIds:
    """IDs that nobody else gives, in the order of time: 12 hexadecimal digits of the
    millisecond, 12 of this process, 8 of a count."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(6)
        self._count = itertools.count()

    def next(self) -> str:
        now = time.time_ns() // 1_000_000
        return f"{now:012x}{self._process}{next(self._count) & 0xFFFFFFFF:08x}"


def describe(request: pb.EvaluateRequest) -> Descriptor:
    """The descriptor that a message holds. Raises InvalidDescriptor where it says too little."""
    overrides, keys = _policy_headers(request)
    credential, key = (
        (Credential.GIVEN, request.key) if request.key else descriptor.credential(keys)
    )
    target = endpoints.resolve(request.method, request.path)
    user, safety_identifier = _identifiers(request, target)
    if target.in_scope and user is _UNKNOWN and safety_identifier is _UNKNOWN:
        raise InvalidDescriptor(
            "nobody can tell whether this request has a user: "
            "set has_user, user_state or user, or send the body as raw_body"
        )
    return Descriptor(target, credential, key, overrides, user, safety_identifier)


def _policy_headers(request: pb.EvaluateRequest) -> tuple[tuple[str, ...], tuple[str, ...]]:
    overrides: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    for header in request.headers:
        name = header.name.lower()
        if name == descriptor.OVERRIDE_HEADER:
            overrides += (header.value,)
        elif name == descriptor.KEY_HEADER:
            keys += (header.value,)
    return overrides, keys


def _identifiers(request: pb.EvaluateRequest, target: Target) -> tuple[UserState, UserState]:
    user = _state(request.user_state, "user_state")
    safety_identifier = _state(request.safety_identifier_state, "safety_identifier_state")
    if request.HasField("has_user"):
        user = max(user, UserState.VALID if request.has_user else UserState.ABSENT)
    if request.HasField("user"):
        user = max(user, descriptor.classify(request.user))
    if request.HasField("safety_identifier"):
        claimed = descriptor.classify(request.safety_identifier, SAFETY_IDENTIFIER)
        safety_identifier = max(safety_identifier, claimed)
    if request.HasField("raw_body") and target.in_scope:
        facts = _read_raw_body(request, target)
        user = max(user, facts.user.state)
        safety_identifier = max(safety_identifier, facts.safety_identifier.state)
    return user, safety_identifier


def _read_raw_body(request: pb.EvaluateRequest, target: Target) -> descriptor.Facts:
    body = request.raw_body
    headers = [(header.name, header.value) for header in request.headers]
    content_type = body.content_type or descriptor.agreed(descriptor.values(headers, _TYPE))
    coding = body.content_encoding or ", ".join(descriptor.values(headers, _ENCODING))
    return descriptor.read_body(body.content, content_type, coding, target.endpoint)


def _state(number: int, field: str) -> UserState:
    if 0 <= number < len(_STATES):
        return _STATES[number]
    raise InvalidDescriptor(f"{field} has no value {number}: see UserState in policy.proto")


@lru_cache(maxsize=4096)
def _template(decision: Decision) -> pb.EvaluateResponse:
    why = decision.explanation
    response = pb.EvaluateResponse(
        decision=pb.DECISION_DENY if decision.denial else pb.DECISION_ALLOW,
        flags=[pb.Flag(type=flag.type, description=flag.description) for flag in decision.flags],
        would_deny=decision.would_deny,
        explanation=pb.Explanation(
            mode=pb.EnforceMode.ValueType(why.mode or 0),
            source=pb.SettingSource.ValueType(why.source or 0),
            override_ignored=pb.OverrideIgnored.ValueType(why.ignored),
            in_scope=why.in_scope,
            operation=why.operation,
            user_state=pb.UserState.ValueType(why.user_state),
            identifier=why.identifier,
            summary=why.summary,
        ),
    )
    if refusal := decision.denial:
        headers = [pb.Header(name=name, value=value) for name, value in refusal.headers]
        denial = pb.Denial(http_status=refusal.status, headers=headers, body=refusal.body)
        response.denial.CopyFrom(denial)
    return response
