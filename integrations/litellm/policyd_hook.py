"""Asks policyd about each request to a LiteLLM proxy, and refuses those that it denies.

LiteLLM finds `hook` by the config's `callbacks: policyd_hook.hook`. Where policyd gives no decision
the request is refused with 503.
"""

import json
import os
from typing import Any, NoReturn
from urllib.parse import urlsplit

from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import ProxyException, UserAPIKeyAuth

from policyd.client import PolicyClient
from policyd.v1.policy_pb2 import (
    DECISION_ALLOW,
    USER_STATE_ABSENT,
    USER_STATE_DUPLICATE,
    USER_STATE_EMPTY,
    USER_STATE_NOT_STRING,
    USER_STATE_UNSUPPORTED_ENCODING,
    Denial,
    EvaluateRequest,
    Header,
    UserState,
)

# LiteLLM serves these at many paths (/engines/NAME/…, /openai/deployments/NAME/… and more), so they
# go by what it makes of them. Every other request goes by its path.
_PATHS = {
    "acompletion": "/v1/chat/completions",
    "completion": "/v1/chat/completions",
    "atext_completion": "/v1/completions",
    "text_completion": "/v1/completions",
    "aembedding": "/v1/embeddings",
    "embeddings": "/v1/embeddings",
    "aimage_generation": "/v1/images/generations",
    "image_generation": "/v1/images/generations",
    "aimage_edit": "/v1/images/edits",
    "aresponses": "/v1/responses",
    "responses": "/v1/responses",
}
_MAX_REMARK = 256
_MISSING = object()


class PolicydHook(CustomLogger):  # type: ignore[misc]  # LiteLLM's types are not at hand here
    """Asks the policyd at `target`, and waits at most `timeout` seconds for its answer.

    A request names its policyd key in x-usagepanda-api-key. One that does not is judged by the
    `policyd_api_key` in its LiteLLM key's metadata, or else by `key`.
    """

    def __init__(
        self, target: str, *, key: str = "", token: str = "", timeout: float = 1.0
    ) -> None:
        super().__init__()
        self._target = target
        self._key = key
        self._token = token
        self._timeout = timeout
        self._policyd: PolicyClient | None = None

    async def async_pre_call_hook(
        self,
        user_api_key_dict: UserAPIKeyAuth,
        cache: Any,
        data: dict[str, Any],
        call_type: str,
    ) -> dict[str, Any]:
        """Let the request pass, or raise policyd's denial."""
        if self._policyd is None:  # It belongs to the event loop, which runs by now.
            self._policyd = PolicyClient(
                self._target, token=self._token, timeout=self._timeout, on_error="deny"
            )
        key = (user_api_key_dict.metadata or {}).get("policyd_api_key") or self._key
        answer = await self._policyd.evaluate(question(data, call_type, str(key)))
        if answer.decision != DECISION_ALLOW:
            refuse(answer.denial)
        return data


class Denied(ProxyException):  # type: ignore[misc]  # as above
    """policyd's denial, in the one kind of exception that LiteLLM passes on as it is."""

    def __init__(self, denial: Denial, error: dict[str, Any]) -> None:
        # LiteLLM adds its own to these; Content-Type it sets itself, to the same.
        headers = {h.name: h.value for h in denial.headers if h.name.lower() != "content-type"}
        super().__init__(**error, headers=headers)
        self.code = str(denial.http_status)
        self._error = error

    def to_dict(self) -> dict[str, Any]:
        """The error in the body. LiteLLM writes it compactly, its keys in this order."""
        return self._error


def refuse(denial: Denial) -> NoReturn:
    """Raise `denial`."""
    raise Denied(denial, json.loads(denial.body)["error"])


def question(data: dict[str, Any], call_type: str, key: str) -> EvaluateRequest:
    """Describe a request. `key` is used where it names no policyd key itself.

    Of a field that is repeated LiteLLM reads the last and sends that one on, so it is judged.
    What LiteLLM passes through without saying where (/openai/… and the like) is in scope.
    """
    unsaid = {"headers": {}, "method": "", "url": "", "body": data}
    # Of what it passes through, `data` is the client's own body, which may claim anything.
    is_told = call_type != "pass_through_endpoint"
    came = (is_told and data.get("proxy_server_request")) or unsaid
    headers = {name.lower(): value for name, value in came["headers"].items()}
    asked = EvaluateRequest(
        method=came["method"],
        path=_PATHS.get(call_type) or urlsplit(came["url"]).path,
        headers=[
            Header(name=n, value=v) for n, v in headers.items() if n.startswith("x-usagepanda-")
        ],
        model=str(data.get("model") or "")[:_MAX_REMARK],
        user_agent=headers.get("user-agent", "")[:_MAX_REMARK],
    )
    if "x-usagepanda-api-key" not in headers:
        asked.key = key
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        asked.user_state = USER_STATE_UNSUPPORTED_ENCODING  # LiteLLM undoes none.
        return asked
    body = came["body"] or {}
    for identifier in ("user", "safety_identifier"):
        if is_told and _is_rewritten(body, identifier):
            setattr(asked, f"{identifier}_state", USER_STATE_DUPLICATE)
        else:
            _tell(asked, identifier, body.get(identifier, _MISSING))
    return asked


def _is_rewritten(body: dict[str, Any], identifier: str) -> bool:
    """Whether the body itself has LiteLLM send another `identifier` upstream, or none."""
    extra, fallbacks = body.get("extra_body"), body.get("fallbacks")
    others = [extra, *(fallbacks if isinstance(fallbacks, list) else ())]
    is_replaced = any(isinstance(one, dict) and identifier in one for one in others)
    return is_replaced or identifier in str(body.get("additional_drop_params"))


def _tell(asked: EvaluateRequest, identifier: str, value: object) -> None:
    if isinstance(value, str):
        setattr(asked, identifier, value)
    else:
        state = "user_state" if identifier == "user" else f"{identifier}_state"
        setattr(asked, state, _state(value))


def _state(value: object) -> UserState.ValueType:
    if value is _MISSING:
        return USER_STATE_ABSENT
    is_empty = value is None or value is False or (isinstance(value, int | float) and not value)
    return USER_STATE_EMPTY if is_empty else USER_STATE_NOT_STRING


_setting = os.environ.get  # noqa: TID251  # LiteLLM makes a hook without arguments.
hook = PolicydHook(
    _setting("POLICYD_TARGET", "127.0.0.1:50051"),
    key=_setting("POLICYD_API_KEY", ""),
    token=_setting("POLICYD_TOKEN", ""),
    timeout=float(_setting("POLICYD_TIMEOUT", "1")),
)
