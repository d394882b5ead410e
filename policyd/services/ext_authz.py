"""Envoy's external authorization: a CheckRequest is described, decided and answered.

Istio and Envoy Gateway speak it too. How each is set up is in integrations/envoy.
"""

import logging
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.service.auth.v3.external_auth_pb2 import (
    CheckRequest,
    CheckResponse,
    DeniedHttpResponse,
    OkHttpResponse,
)
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct
from google.rpc import code_pb2, status_pb2

from policyd.decider import Decider
from policyd.descriptor.body_memory import Bodies
from policyd.engine import denial
from policyd.engine.settings import RouteSettings
from policyd.engine.states import Mode
from policyd.errors import InvalidArgument
from policyd.services import ext_authz_request
from policyd.services.ext_authz_request import Arrival, Check
from policyd.v1 import policy_pb2 as pb

_log = logging.getLogger(__name__)

_SET = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_ALLOWED = status_pb2.Status(code=code_pb2.OK)
_DENIED = status_pb2.Status(code=code_pb2.PERMISSION_DENIED)
_UNREAD = {
    Arrival.CUT: (
        "The request body is larger than what Envoy sends to be checked, so its user field cannot "
        "be known. Send a smaller one, or ask the gateway's operator to raise "
        "with_request_body.max_request_bytes"
    ),
    Arrival.MISSING: (
        "Envoy sent no request body to be checked, so its user field cannot be known. "
        "If you sent one, ask the gateway's operator to set with_request_body.max_request_bytes"
    ),
}


class AuthorizationServicer:
    """Answers Check by what `decider` decides. An error is no decision: Envoy then fails closed."""

    def __init__(
        self, decider: Decider, bodies: Bodies, trusted: Callable[[], frozenset[str]]
    ) -> None:
        """Of the headers that Envoy shows, those in `trusted` may name the end user."""
        self._trusted = trusted
        self._decider = decider
        self._bodies = bodies
        self._told: set[str] = set()

    async def Check(self, request: CheckRequest, context: Any) -> CheckResponse:
        """See envoy.service.auth.v3. Raises InvalidArgument or InvalidDescriptor."""
        route = self._route(request)
        trusted = self._trusted()
        check = await ext_authz_request.read(
            request.attributes, self._bodies, self._decider.knows, trusted
        )
        if check.is_websocket:
            return CheckResponse(status=_DENIED, denied_response=_WEBSOCKET)
        answer = await self._decider.answer(check.described, route, trusted, adapter="envoy")
        metadata = _metadata(answer)
        if answer.decision == pb.DECISION_ALLOW:
            allowed = _ok(check, answer.upstream_path)
            return CheckResponse(status=_ALLOWED, ok_response=allowed, dynamic_metadata=metadata)
        denied = _denied(answer, check.arrival)
        return CheckResponse(status=_DENIED, denied_response=denied, dynamic_metadata=metadata)

    def _route(self, request: CheckRequest) -> RouteSettings:
        try:
            return ext_authz_request.route(request.attributes.context_extensions)
        except InvalidArgument as problem:
            # It is the operator's mistake, and Envoy does not show what policyd answers. A
            # configuration holds few of them, so each is logged once.
            if str(problem) not in self._told:
                self._told.add(str(problem))
                _log.error("Envoy gets no decision for a route: %s", problem)
            raise


def _ok(check: Check, upstream_path: str) -> OkHttpResponse:
    response = OkHttpResponse(headers_to_remove=check.own_headers)
    path, mark, query = check.target.partition("?")
    if upstream_path not in ("", path):
        response.headers.append(_header(":path", upstream_path + mark + query))
    return response


def _denied(answer: pb.EvaluateResponse, arrival: Arrival) -> DeniedHttpResponse:
    denied = answer.denial
    body = denied.body
    is_unread = denied.http_status == denial.TOO_LARGE
    if is_unread and arrival in _UNREAD:
        body = denial.render(denied.http_status, (_UNREAD[arrival],), "invalid_request").body
    headers = [_header(header.name, header.value) for header in denied.headers]
    # Envoy would put its own Date after Content-Length; the original product has it before that.
    headers.append(_header("Date", formatdate(usegmt=True)))
    # OpenAI's clients show it as the error's request_id.
    headers.append(_header("x-request-id", answer.decision_id))
    return DeniedHttpResponse(
        status=HttpStatus(code=denied.http_status), headers=headers, body=body
    )


def _header(name: str, value: str) -> HeaderValueOption:
    return HeaderValueOption(header=HeaderValue(key=name, value=value), append_action=_SET)


_WEBSOCKET = DeniedHttpResponse(
    status=HttpStatus(code=denial.WEBSOCKET.status),
    headers=[_header(name, value) for name, value in denial.WEBSOCKET.headers],
    body=denial.WEBSOCKET.body,
)


def _metadata(answer: pb.EvaluateResponse) -> Struct:
    """What Envoy's log and later filters may know of the decision."""
    mode = answer.explanation.mode
    metadata = Struct()
    metadata.update(
        {
            "decision_id": answer.decision_id,
            "decision": "allow" if answer.decision == pb.DECISION_ALLOW else "deny",
            "flags": [flag.type for flag in answer.flags],
            "revision": answer.revision,
            "api_key_id": answer.api_key_id,
            "mode": Mode(mode).name.lower() if mode else "",
            "would_deny": answer.would_deny,
            "policies": {one.policy: _result(one) for one in answer.results},
        }
    )
    return metadata


def _result(result: pb.PolicyResult) -> dict[str, Any]:
    return {
        "mode": Mode(result.mode).name.lower() if result.mode else "",
        "value": result.value,
        "violated": result.violated,
        "message": result.message,
    }
