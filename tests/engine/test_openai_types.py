"""The table of endpoints against OpenAI's own package: a call that changes there fails here."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, get_type_hints

import openai.resources
import openai.types
import pytest
from typing_extensions import is_typeddict

from policyd.engine.endpoints import ENDPOINTS
from policyd.engine.model import IDENTIFIERS, MAX_SAFETY_IDENTIFIER, SAFETY_IDENTIFIER

# Calls that take an identifier and are no endpoint of the table, each with the reason.
CALLS_OUT_OF_SCOPE = {
    "beta.chatkit.threads.Threads.list": "a GET: the user is what is looked for",
    "responses.responses.ResponsesResponseResource.create": "an event on a WebSocket: 426",
    "beta.responses.responses.ResponsesResponseResource.create": "an event on a WebSocket: 426",
    "live.live.LiveSessionResource.start": "an event on a WebSocket: 426",
}
# Calls that post as `create` of the same class does.
HELPERS = (".parse", ".stream")
# Endpoints of the APIs that take OpenAI-Safety-Identifier, which need none, each with the reason.
_UNDER_WAY = "acts on a session or call that was begun with an end user"
SESSIONS_OUT_OF_SCOPE = {
    "/live/sessions/{session_id}/fork": _UNDER_WAY,
    "/live/sessions/{session_id}/hangup": _UNDER_WAY,
    "/live/sessions/{session_id}/refer": _UNDER_WAY,
    "/live/sessions/{session_id}/reject": "turns a call away",
    "/realtime/calls/{call_id}/accept": "a caller by telephone, for whom the types have no place",
    "/realtime/calls/{call_id}/hangup": _UNDER_WAY,
    "/realtime/calls/{call_id}/refer": _UNDER_WAY,
    "/realtime/calls/{call_id}/reject": "turns a call away",
}
# Types with an identifier that are no call's own arguments, each with the reason.
_SHELL = "the account that a command runs under in the model's sandbox"
_EVENT = "an event on a WebSocket: 426"
TYPES_OUT_OF_SCOPE = {
    "beta.beta_response_input_item_param.LocalShellCallAction": _SHELL,
    "beta.beta_response_input_param.LocalShellCallAction": _SHELL,
    "responses.response_input_item_param.LocalShellCallAction": _SHELL,
    "responses.response_input_param.LocalShellCallAction": _SHELL,
    "beta.beta_responses_client_event_param.ResponseCreate": _EVENT,
    "responses.responses_client_event_param.ResponseCreate": _EVENT,
    "beta.chatkit.thread_list_params.ThreadListParams": "a GET's query",
    "live.session_config_param.SessionConfigParam": _EVENT,
}


class Call(NamedTuple):
    """A call of the package that takes an identifier."""

    taken: tuple[str, ...]
    """The identifiers."""
    is_in_session: bool
    """Whether they stand in its argument `session`."""
    arguments: frozenset[str]
    source: str

    @property
    def path(self) -> str:
        """The path that it posts to."""
        found = posted(self.source)
        assert len(found) == 1, self.source
        return found[0]


def posted(source: str) -> list[str]:
    """The paths that a source posts to."""
    return re.findall(r"self\._post\(\s*(?:path_template\(\s*)?f?\"([^\"?]*)", source)


def modules(package: ModuleType) -> Iterator[ModuleType]:
    """Every module of `package`."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


def members(package: ModuleType) -> Iterator[tuple[str, type]]:
    """Every class that a module of `package` defines, by its name within the package."""
    for module in modules(package):
        for name, kind in vars(module).items():
            if inspect.isclass(kind) and kind.__module__ == module.__name__:
                yield f"{module.__name__}.{name}".removeprefix(f"{package.__name__}."), kind


def functions() -> Iterator[tuple[str, Any]]:
    """Every synchronous call, by its name."""
    for name, kind in members(openai.resources):
        for method, function in vars(kind).items():
            if isinstance(function, FunctionType) and "Async" not in name:
                yield f"{name}.{method}", inspect.unwrap(function)


def calls() -> Iterator[tuple[str, Call]]:
    """Every synchronous call that takes an identifier."""
    for name, function in functions():
        given = inspect.signature(function).parameters
        session = get_type_hints(function).get("session") if "session" in given else None
        nested = getattr(session, "__annotations__", {})
        fields = nested if SAFETY_IDENTIFIER in nested else given
        if taken := tuple(one for one in IDENTIFIERS if one in fields):
            source = inspect.getsource(function)
            yield name, Call(taken, fields is nested, frozenset(given), source)


CALLS = dict(calls())
TYPES = {
    name: kind
    for name, kind in members(openai.types)
    if is_typeddict(kind) and set(IDENTIFIERS) & set(kind.__annotations__)
}
IN_SCOPE = [one for one in sorted(CALLS.keys() - CALLS_OUT_OF_SCOPE) if not one.endswith(HELPERS)]
SOURCES = {name: inspect.getsource(function) for name, function in functions()}
POSTED = {path: source for source in SOURCES.values() for path in posted(source)}


@pytest.mark.parametrize("name", IN_SCOPE)
def test_calls(name: str) -> None:
    """Each call posts to an endpoint of the table, which has the same identifiers and takes a model
    as the call does.
    """
    call = CALLS[name]
    endpoint = ENDPOINTS[call.path]
    assert tuple(one for one in endpoint.identifiers if one in IDENTIFIERS) == call.taken
    assert endpoint.safety_in_session == call.is_in_session
    assert endpoint.takes_model == ("model" in call.arguments)


def test_endpoints() -> None:
    """The package still has a call for each endpoint of OpenAI's. It names no header, so those that
    are judged by OpenAI-Safety-Identifier alone are the ones that begin sessions and calls.
    """
    by_header = {name for name, endpoint in ENDPOINTS.items() if endpoint.safety_header}
    assert by_header | {CALLS[name].path for name in IN_SCOPE} == set(ENDPOINTS) - {"/v1/messages"}
    sessions = {path for path in POSTED if path.startswith(("/realtime/", "/live/"))}
    assert sessions == by_header | SESSIONS_OUT_OF_SCOPE.keys()


def test_types() -> None:
    """A type with an identifier is the arguments of a call above, or there is a reason."""
    sources = "".join(call.source for call in CALLS.values())
    own = {name for name in TYPES if _is_used(name, sources)}
    assert own
    assert TYPES.keys() - own <= TYPES_OUT_OF_SCOPE.keys()


def _is_used(name: str, sources: str) -> bool:
    module, kind = name.split(".")[-2:]
    return f"{module}." in sources or f"session: {kind}" in sources


def test_reasons_are_needed() -> None:
    """Each exception names a call or type that exists."""
    assert CALLS_OUT_OF_SCOPE.keys() <= CALLS.keys()
    assert TYPES_OUT_OF_SCOPE.keys() <= TYPES.keys()
    helpers = [name for name in CALLS if name.endswith(HELPERS)]
    assert helpers
    for name in helpers:
        assert CALLS[f"{name.rpartition('.')[0]}.create"].taken == CALLS[name].taken


def test_bodies() -> None:
    """Calls that send forms and session descriptions are those whose endpoints take them."""
    sent = {path: POSTED[path] for path in ENDPOINTS if path in POSTED}
    forms = {path for path, source in sent.items() if "multipart/form-data" in source}
    assert forms == {name for name, endpoint in ENDPOINTS.items() if endpoint.takes_form}
    offers = {path for path, source in sent.items() if '{"sdp": ("application/sdp"' in source}
    assert offers == {name for name, endpoint in ENDPOINTS.items() if endpoint.takes_sdp}


def test_models() -> None:
    """Calls of sessions take a model of their own where their endpoints are said to."""
    for path, endpoint in ENDPOINTS.items():
        if endpoint.safety_header:
            assert endpoint.takes_model == ('"model": model' in POSTED[path]), path


def test_the_longest_safety_identifier() -> None:
    """Our bound of a safety_identifier is OpenAI's."""
    sources = {inspect.getsource(inspect.getmodule(kind) or kind) for kind in TYPES.values()}
    stated = re.findall(
        r"safety_identifier: (?:(?!\"\"\").)*\"\"\"(?:(?!\"\"\").)*?maximum\s+length\s+of\s+(\d+)",
        "".join(sources),
        re.DOTALL,
    )
    assert {int(number) for number in stated} == {MAX_SAFETY_IDENTIFIER}
