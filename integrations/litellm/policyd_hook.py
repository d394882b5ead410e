"""Asks policyd about each request to a LiteLLM proxy, and denies those that policyd denies.

LiteLLM finds `hook` by the config's `callbacks: policyd_hook.hook`. Where policyd gives no decision
the client gets 503. policyd judges what LiteLLM sends upstream. A client's path says little about
that, so the hook describes a request by the call that LiteLLM makes for it (`call_type`).
The hook reports the outcome of each request that an upstream has answered.
"""

import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote

from litellm.integrations.custom_logger import CustomLogger
from litellm.litellm_core_utils.litellm_logging import Logging
from litellm.proxy._types import ProxyException, UserAPIKeyAuth
from litellm.types.proxy.litellm_pre_call_utils import RedactedDict

from policyd.client import PolicyClient
from policyd.command.serving_settings import POLICY_TIMEOUT
from policyd.descriptor.body import read_body
from policyd.descriptor.describe import HttpRequest, describe
from policyd.descriptor.headers import KEY_HEADER, by_name, is_own
from policyd.descriptor.identifiers import (
    ABSENT,
    MISSING,
    NOT_READ,
    BodyAttributes,
    Identifier,
    from_value,
    unreadable,
)
from policyd.descriptor.stated import INVALID, NUMBERS
from policyd.engine.places import SAFETY_HEADER, SAFETY_IDENTIFIER, USER
from policyd.engine.states import ModelState, UserState
from policyd.v1.policy_pb2 import (
    DECISION_ALLOW,
    ENDING_COMPLETE,
    EvaluateRequest,
    EvaluateResponse,
    Outcome,
)

Data = dict[str, Any]
"""A request's fields, LiteLLM's own among them."""


class Call(NamedTuple):
    """What LiteLLM sends upstream for a call type that is in scope."""

    path: str
    """The endpoint's path; "" where it may be any endpoint, which is in scope, too."""
    identifiers: tuple[str, ...] = ("user",)
    """The fields that hold an end user and that LiteLLM sends upstream as such."""
    shows_model: bool = True
    """Whether the field `model` names the model that LiteLLM asks for."""
    shows_numbers: bool = True
    """Whether the token limit and the prompt are in fields with OpenAI's names."""


_CHAT = Call("/v1/chat/completions", ("user", "safety_identifier"))
_MESSAGES = Call("/v1/chat/completions", ("metadata.user_id",))
_NOTHING_MAPPED = Call("/v1/chat/completions", (), shows_numbers=False)
_RESPONSES = Call("/v1/responses", ("user", "safety_identifier"))
_GENERATIONS = Call("/v1/images/generations")
_UNSEEN = Call("", (), shows_model=False, shows_numbers=False)

IN_SCOPE = {
    **dict.fromkeys(("acompletion", "completion"), _CHAT),
    **dict.fromkeys(("atext_completion", "text_completion"), Call("/v1/completions")),
    **dict.fromkeys(("aembedding", "embedding", "embeddings"), Call("/v1/embeddings")),
    **dict.fromkeys(("aresponses", "responses"), _RESPONSES),
    **dict.fromkeys(("aimage_generation", "image_generation"), _GENERATIONS),
    **dict.fromkeys(("aimage_edit", "image_edit"), Call("/v1/images/edits")),
    # For models that know only chat completions or responses, LiteLLM turns these into such a call.
    **dict.fromkeys(("anthropic_messages", "aanthropic_messages"), _MESSAGES),
    **dict.fromkeys(("generate_content", "agenerate_content"), _NOTHING_MAPPED),
    **dict.fromkeys(("generate_content_stream", "agenerate_content_stream"), _NOTHING_MAPPED),
    **dict.fromkeys(
        ("create_interaction", "acreate_interaction"), Call("/v1/responses", shows_numbers=False)
    ),
    **dict.fromkeys(("send_message", "asend_message"), _NOTHING_MAPPED),
    **dict.fromkeys(("decisions", "adecisions"), Call("/v1/decisions", ("safety_identifier",))),
    # LiteLLM sends upstream neither their identifier nor the header that may name an end user.
    "acreate_realtime_client_secret": Call("/v1/realtime/client_secrets", ()),
    "acreate_realtime_transcription_session": Call("/v1/realtime/transcription_sessions", ()),
    "arealtime_calls": Call("/v1/realtime/calls", ()),
    # Over a WebSocket the client sends what no hook sees.
    "_aresponses_websocket": Call("/v1/responses", (), shows_model=False, shows_numbers=False),
    "_arealtime": _UNSEEN,
    # LiteLLM passes these through and does not say where to. The body is the client's own.
    "pass_through_endpoint": Call("", ("user", "safety_identifier")),
    **dict.fromkeys(("llm_passthrough_route", "allm_passthrough_route"), _UNSEEN),
}
"""Call types that may reach an endpoint which carries an end user."""

_OUT_OF_SCOPE = """
    moderation amoderation transcription atranscription speech aspeech rerank arerank
    search asearch systemone asystemone ocr aocr ingest aingest query aquery
    create_batch acreate_batch retrieve_batch aretrieve_batch cancel_batch acancel_batch
    alist_batches create_file acreate_file file_retrieve afile_retrieve file_delete afile_delete
    file_list afile_list file_content afile_content
    create_assistants acreate_assistants get_assistants aget_assistants
    delete_assistant adelete_assistant create_thread acreate_thread get_thread aget_thread
    add_message a_add_message get_messages aget_messages run_thread arun_thread
    run_thread_stream arun_thread_stream
    create_fine_tuning_job acreate_fine_tuning_job cancel_fine_tuning_job
    acancel_fine_tuning_job list_fine_tuning_jobs alist_fine_tuning_jobs
    retrieve_fine_tuning_job aretrieve_fine_tuning_job
    create_video acreate_video video_generation avideo_generation video_retrieve avideo_retrieve
    video_content avideo_content video_remix avideo_remix video_list avideo_list
    video_retrieve_job avideo_retrieve_job video_delete avideo_delete avideo_status
    video_create_character avideo_create_character video_get_character avideo_get_character
    video_edit avideo_edit video_extension avideo_extension
    vector_store_create avector_store_create vector_store_search avector_store_search
    avector_store_retrieve avector_store_list avector_store_update avector_store_delete
    vector_store_file_create avector_store_file_create
    vector_store_file_list avector_store_file_list
    vector_store_file_retrieve avector_store_file_retrieve
    vector_store_file_content avector_store_file_content
    vector_store_file_update avector_store_file_update
    vector_store_file_delete avector_store_file_delete
    create_container acreate_container list_containers alist_containers
    retrieve_container aretrieve_container delete_container adelete_container
    list_container_files alist_container_files upload_container_file aupload_container_file
    aretrieve_container_file adelete_container_file aretrieve_container_file_content
    create_sandbox acreate_sandbox delete_sandbox adelete_sandbox run_code arun_code
    code_interpreter_tool acode_interpreter_tool
    get_responses aget_responses delete_responses adelete_responses
    cancel_responses acancel_responses compact_responses acompact_responses alist_input_items
    aget_interaction adelete_interaction acancel_interaction
    acreate_agent alist_agents aget_agent adelete_agent alist_agent_versions
    acreate_skill alist_skills aget_skill adelete_skill
    acreate_eval alist_evals aget_eval aupdate_eval adelete_eval acancel_eval
    acreate_run alist_runs aget_run acancel_run adelete_run
    call_mcp_tool list_mcp_tools apply_guardrail
"""
OUT_OF_SCOPE = frozenset(_OUT_OF_SCOPE.split())
"""Call types that reach no endpoint in scope. One in neither table is in scope."""

_KEYLESS = frozenset({"call_mcp_tool", "list_mcp_tools"})
"""Call types out of scope whose clients speak another protocol, and so need no policyd key."""
_UPSTREAM_CUTS_AT = 64
"""Characters of metadata.user_id that LiteLLM sends upstream, at most."""


class PolicydHook(CustomLogger):  # type: ignore[misc]  # LiteLLM is not installed here
    """Asks the policyd at `target`, or any of several (HOST:PORT,HOST:PORT), and waits at most
    `timeout` seconds for an answer.

    A request names its policyd key in x-usagepanda-api-key. For one that does not, the hook uses
    the `policyd_api_key` in the LiteLLM key's metadata, or else `key`.
    """

    enforces_request_content = True
    """Makes LiteLLM show the hook each line of an uploaded batch file, as if it were a request."""

    def __init__(
        self, target: str, *, key: str = "", token: str = "", timeout: float = POLICY_TIMEOUT
    ) -> None:
        super().__init__()
        self._target = target
        self._key = key
        self._token = token
        self._timeout = timeout
        self._policyd: PolicyClient | None = None

    async def async_pre_call_hook(
        self,
        user_api_key_dict: UserAPIKeyAuth | None,
        cache: Any,
        data: Data,
        call_type: str,
    ) -> Data:
        """Let the request pass, or raise policyd's denial."""
        if self._policyd is None:  # The client belongs to the event loop, which runs by now.
            self._policyd = PolicyClient(
                self._target, token=self._token, timeout=self._timeout, on_error="deny"
            )
        known = (user_api_key_dict and user_api_key_dict.metadata) or {}
        key = str(known.get("policyd_api_key") or self._key)
        asked = described(data, call_type, key)
        if call_type in _KEYLESS and _is_keyless(asked):
            return data
        answer = await self._policyd.evaluate(asked)
        if answer.decision != DECISION_ALLOW:
            deny(answer)
        _remember(answer.decision_id, data)
        if _came_whole(data):
            _keep_back_own_headers(data)
            _keep_user(data, call_type)
        return data

    async def async_log_success_event(
        self, kwargs: Data, response_obj: object, start_time: datetime, end_time: datetime
    ) -> None:
        """Report the outcome of a request, unless LiteLLM answered it from its cache."""
        decision_id = kwargs.get(_DECISION)
        if decision_id and self._policyd is not None and not kwargs.get("cache_hit"):
            self._policyd.report(outcome(decision_id, kwargs, response_obj))


class Denied(ProxyException):  # type: ignore[misc]  # as above
    """policyd's denial, in the one kind of exception that LiteLLM passes on unchanged."""

    def __init__(self, answer: EvaluateResponse, error: dict[str, Any]) -> None:
        denial = answer.denial
        # LiteLLM adds headers of its own, among them the same Content-Type.
        headers = {h.name: h.value for h in denial.headers if h.name.lower() != "content-type"}
        if answer.decision_id:
            headers["x-request-id"] = answer.decision_id
        super().__init__(**error, headers=headers)
        self.code = str(denial.http_status)
        self._error = error

    def to_dict(self) -> dict[str, Any]:
        """The error in the body. LiteLLM writes it as compact JSON, with its keys in this order."""
        return self._error


def deny(answer: EvaluateResponse) -> NoReturn:
    """Raise the denial of `answer`."""
    raise Denied(answer, json.loads(answer.denial.body)["error"])


# --- the request's descriptor -----------------------------------------------------------------


def described(data: Data, call_type: str, key: str) -> EvaluateRequest:
    """Describe a request. `key` counts where the request names no policyd key itself."""
    given = by_name(_headers(data, call_type))
    call = IN_SCOPE.get(call_type, _UNSEEN)
    request = HttpRequest(
        "POST" if call.path else "",
        call.path,
        "",
        given,
        key=key,
        in_scope=False if call_type in OUT_OF_SCOPE else None,
    )
    attributes = _attributes(data, call, request)
    return describe(request, attributes._replace(model=str(data.get("model") or "")))


def _came_whole(data: Data) -> bool:
    """Whether LiteLLM has prepared `data`: then its fields about the request are LiteLLM's own.

    A passed-through body and a line of a batch are the client's: they can claim anything, but
    cannot hold a RedactedDict.
    """
    secret = data.get("secret_fields")
    return isinstance(secret, dict) and isinstance(secret.get("raw_headers"), RedactedDict)


def _is_keyless(asked: EvaluateRequest) -> bool:
    return not asked.key and not any(header.name == KEY_HEADER for header in asked.headers)


def _headers(data: Data, call_type: str) -> list[tuple[str, str]]:
    """The client's headers, names in lower case; none where LiteLLM does not show them."""
    if not _came_whole(data):
        return [] if call_type == "pass_through_endpoint" else _remembered_headers(data)
    # Of a repeated header, `raw_headers` has the first value and `headers` the last.
    first = data["secret_fields"]["raw_headers"]
    last = data["proxy_server_request"]["headers"]
    found = {(str(name).lower(), str(v)): None for one in (first, last) for name, v in one.items()}
    return [one for one in found if one[0] != SAFETY_HEADER]  # LiteLLM does not send it upstream.


def _remembered_headers(data: Data) -> list[tuple[str, str]]:
    """The headers of the upload that a batch's line is part of, or of an MCP client."""
    for bag in ("litellm_metadata", "metadata"):
        kept = data.get(bag)
        headers = kept.get("headers") if isinstance(kept, dict) else None
        if isinstance(headers, Mapping) and headers:
            return [(str(name).lower(), str(value)) for name, value in headers.items()]
    return []


# --- the request's attributes ------------------------------------------------------------------


def _attributes(data: Data, call: Call, request: HttpRequest) -> BodyAttributes:
    """What policies judge in the request that LiteLLM sends upstream."""
    if not request.target.in_scope:
        return NOT_READ
    if request.content_encoding.strip().lower() not in ("", "identity"):
        return unreadable(UserState.UNSUPPORTED_ENCODING)  # LiteLLM decompresses nothing.
    stated = _stated(data, call)
    if stated.user.state.is_unreadable:
        return stated
    is_rewritten = _is_rewritten(data, call) if _came_whole(data) else _has_twin(data)
    found = {USER: ABSENT, SAFETY_IDENTIFIER: ABSENT}
    for place in call.identifiers:
        name = SAFETY_IDENTIFIER if place == SAFETY_IDENTIFIER else USER
        value = _value(data, place)
        found[name] = Identifier(UserState.DUPLICATE) if is_rewritten else from_value(value, name)
    return stated._replace(user=found[USER], safety_identifier=found[SAFETY_IDENTIFIER])


_PROMPTS = ("messages", "prompt", "input", "instructions")
_SYSTEM = "system"
"""The instructions of Anthropic's messages."""
_STATED = frozenset({"model", *NUMBERS, *_PROMPTS, _SYSTEM})
_REPLACING = frozenset({"context_window_fallback_dict", "prompt_id"}) | {
    *("fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "default_fallbacks")
}
"""Fields that name other models, or a prompt that LiteLLM stores."""


def _stated(data: Data, call: Call) -> BodyAttributes:
    """The model, the numbers and the prompt's characters, as policyd reads them in a body.

    A value that LiteLLM may replace on the way, or does not show, is CONFLICTING or INVALID.
    """
    fields = {name: data[name] for name in ("model", *NUMBERS, *_PROMPTS) if name in data}
    if _SYSTEM in data:
        fields["instructions"] = [fields.get("instructions"), data[_SYSTEM]]
    try:
        body = json.dumps(fields, default=str).encode()
    except (ValueError, RecursionError):
        return unreadable(UserState.TOO_COMPLEX)
    found = read_body(body, "application/json", "", None)
    is_replaced = _came_whole(data) and _replaces_what_it_states(data)
    if is_replaced or not call.shows_model:
        found = found._replace(model_state=ModelState.CONFLICTING)
    if is_replaced or not call.shows_numbers:
        found = found._replace(token_limit=INVALID, choices=INVALID, prompt_chars=INVALID)
    return found


def _value(data: Data, place: str) -> object:
    if place != "metadata.user_id":
        return data.get(place, MISSING)
    metadata = data.get("metadata")
    value = metadata.get("user_id", MISSING) if isinstance(metadata, dict) else MISSING
    return value[:_UPSTREAM_CUTS_AT] if isinstance(value, str) else value


# Fields that hold the client's conversation, or that LiteLLM fills itself: they rewrite nothing.
_CONTENT = """
    user safety_identifier metadata litellm_metadata proxy_server_request secret_fields
    litellm_logging_obj messages input prompt instructions system text conversation
    tools tool_choice functions function_call response_format reasoning prediction
    stop logit_bias image mask document contents config generationConfig generation_config
    systemInstruction system_instruction message params
"""
_LOOKED_PAST = frozenset(_CONTENT.split())
_REPLACED = frozenset({"user", "safety_identifier", "allowed_openai_params"})
_DROPPING = "additional_drop_params"


def _is_rewritten(data: Data, call: Call) -> bool:
    """Whether the request makes LiteLLM send another identifier than it names, or none.

    On a second attempt LiteLLM replaces fields of the request by those of `fallbacks` and the like;
    it merges `extra_body` into the body, and drops what `additional_drop_params` names. So no field
    outside _CONTENT may name an identifier, at any depth.
    """
    names = _REPLACED
    if call is _MESSAGES:
        names |= {"metadata", "user_id"}
        if "user" in data and not str(data["user"] or "").strip():
            return True
    fields = {name: value for name, value in data.items() if name not in _LOOKED_PAST}
    fields.pop("allowed_openai_params", None)  # _keep_user only adds to it.
    return any(_folded(name) in names or _drops(name, value) for name, value in _walk(fields))


def _replaces_what_it_states(data: Data) -> bool:
    """Whether the request makes LiteLLM send another model, limit or prompt than it states."""
    fields = {name: value for name, value in data.items() if name not in _LOOKED_PAST}
    fields.pop("session", None)  # A realtime call's, from which LiteLLM has taken `model`.
    if any(name in _REPLACING and value for name, value in _walk(fields)):
        return True
    if any(_folded(name) in _STATED for value in fields.values() for name, _ in _walk(value)):
        return True
    dropped = str(fields.get(_DROPPING) or "")
    return any(f"'{name}" in dropped for name in _STATED)


def _has_twin(data: Data) -> bool:
    """Whether `data` names an identifier in another spelling, beside its own or in its place."""
    twins = ("user", "safety_identifier")
    return any(name not in twins and _folded(str(name)) in twins for name in data)


def _folded(name: str) -> str:
    """A name as some upstreams read it: in any letter case, and in forms percent-decoded."""
    return unquote(name).casefold()


def _drops(name: str, value: object) -> bool:
    if name != _DROPPING:
        return False
    told = str(value)
    return any(one in told for one in ("user", "safety_identifier", "metadata"))


def _walk(value: object) -> Iterator[tuple[str, object]]:
    """Every key and its value, at any depth, also in strings of JSON, which forms hold."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            one = _json(one)
        if isinstance(one, Mapping):
            yield from ((str(name), inner) for name, inner in one.items())
            waiting.extend(one.values())
        elif isinstance(one, list | tuple):
            waiting.extend(one)


def _json(text: str) -> object:
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# --- what goes upstream ------------------------------------------------------------------------


_MAY_DROP = (_CHAT, _MESSAGES, _RESPONSES, IN_SCOPE["aembedding"], IN_SCOPE["acreate_interaction"])


def _keep_user(data: Data, call_type: str) -> None:
    """Make LiteLLM keep `user`, which it would drop for models that it does not know as OpenAI's,
    and where it asks another endpoint than the client named."""
    if IN_SCOPE.get(call_type) in _MAY_DROP:
        allowed = data.get("allowed_openai_params")
        kept = allowed if isinstance(allowed, list) else []
        data["allowed_openai_params"] = [*kept, "user"]


def _keep_back_own_headers(data: Data) -> None:
    """Remove policyd's headers from those that LiteLLM may pass on to the upstream."""
    for field in ("headers", "extra_headers"):
        headers = data.get(field)
        if isinstance(headers, dict):
            for name in [one for one in headers if is_own(str(one))]:
                del headers[name]


# --- outcomes ----------------------------------------------------------------------------------

_DECISION = "policyd_decision_id"
_UPSTREAM_IDS = ("chatcmpl-", "cmpl-")
"""How upstreams' answer IDs begin. For some kinds of calls LiteLLM puts an ID of its own there."""


def _remember(decision_id: str, data: Data) -> None:
    """Keep the decision's ID where LiteLLM's callbacks find it and no client can write it."""
    call = data.get("litellm_logging_obj")
    if isinstance(call, Logging):
        call.model_call_details[_DECISION] = decision_id


def outcome(decision_id: str, details: Data, answer: object) -> Outcome:
    """The outcome of a request with this answer. `details` is LiteLLM's own record of the call."""
    made = Outcome(decision_id=decision_id, http_status=200)
    is_stream = bool(details.get("stream"))
    if not is_stream:  # LiteLLM reports a stream that its client has left like a whole one.
        made.ending = ENDING_COMPLETE
    made.model = str(getattr(answer, "model", None) or "")
    answer_id = str(getattr(answer, "id", None) or "")
    if answer_id.startswith(_UPSTREAM_IDS):
        made.openai_id = answer_id
    times = details.get("standard_logging_object") or {}
    began, ended = times.get("startTime"), times.get("endTime")
    if began and ended and ended >= began:
        made.duration.FromMicroseconds(int((ended - began) * 1e6))
    first = times.get("completionStartTime")
    if is_stream and began and first and first >= began:
        made.time_to_first_byte.FromMicroseconds(int((first - began) * 1e6))
    _add_tokens(made, getattr(answer, "usage", None))
    return made


def _add_tokens(made: Outcome, usage: object) -> None:
    cached = getattr(usage, "prompt_tokens_details", None)
    for field, source, name in (
        ("input_tokens", usage, "prompt_tokens"),
        ("output_tokens", usage, "completion_tokens"),
        ("cached_tokens", cached, "cached_tokens"),
        ("cache_write_tokens", cached, "cache_write_tokens"),
    ):
        count = getattr(source, name, None)
        if isinstance(count, int) and count >= 0:
            setattr(made, field, count)


_setting = os.environ.get  # noqa: TID251  # LiteLLM gives a hook no settings.
hook = PolicydHook(
    _setting("POLICYD_TARGET", "127.0.0.1:50051"),
    key=_setting("POLICYD_API_KEY", ""),
    token=_setting("POLICYD_TOKEN", ""),
    timeout=float(_setting("POLICYD_TIMEOUT", POLICY_TIMEOUT)),
)
