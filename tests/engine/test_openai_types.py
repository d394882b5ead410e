"""The table of endpoints against OpenAI's own package: a call that changes there fails here.

The package takes seconds to load, so that only a test that runs loads it.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from types import FunctionType, ModuleType
from typing import Any, NamedTuple, get_type_hints

from typing_extensions import is_typeddict

from policyd.engine.endpoints import ENDPOINTS
from policyd.engine.places import IDENTIFIERS, MAX_SAFETY_IDENTIFIER, SAFETY_IDENTIFIER

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


def members(name: str) -> Iterator[tuple[str, type]]:
    """Every class that a module of the package `name` defines, by its name within the package."""
    package = importlib.import_module(name)
    for module in modules(package):
        for own, kind in vars(module).items():
            if inspect.isclass(kind) and kind.__module__ == module.__name__:
                yield f"{module.__name__}.{own}".removeprefix(f"{package.__name__}."), kind


def functions() -> Iterator[tuple[str, Any]]:
    """Every synchronous call, by its name."""
    for name, kind in members("openai.resources"):
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


@cache
def known_calls() -> dict[str, Call]:
    """Each call that takes an identifier, by its name."""
    return dict(calls())


@cache
def known_types() -> dict[str, type]:
    """Each type that has an identifier, by its name."""
    return {
        name: kind
        for name, kind in members("openai.types")
        if is_typeddict(kind) and set(IDENTIFIERS) & set(kind.__annotations__)
    }


def in_scope() -> dict[str, Call]:
    """Those of the calls that post to an endpoint of the table."""
    return {
        name: call
        for name, call in known_calls().items()
        if name not in CALLS_OUT_OF_SCOPE and not name.endswith(HELPERS)
    }


@cache
def sources() -> dict[str, str]:
    """The source of each call that posts, by the path that it posts to."""
    found = (inspect.getsource(function) for _, function in functions())
    return {path: source for source in found for path in posted(source)}


def test_calls() -> None:
    """Each call posts to an endpoint of the table, which has the same identifiers and takes a model
    as the call does.
    """
    assert in_scope()
    for name, call in in_scope().items():
        endpoint = ENDPOINTS[call.path]
        places = tuple(one for one in endpoint.identifiers if one in IDENTIFIERS)
        assert places == call.taken, name
        assert endpoint.safety_in_session == call.is_in_session, name
        assert endpoint.takes_model == ("model" in call.arguments), name


def test_endpoints() -> None:
    """The package still has a call for each endpoint of OpenAI's. It names no header, so those that
    are judged by OpenAI-Safety-Identifier alone are the ones that begin sessions and calls.
    """
    by_header = {name for name, endpoint in ENDPOINTS.items() if endpoint.safety_header}
    posted_to = {call.path for call in in_scope().values()}
    assert by_header | posted_to == set(ENDPOINTS) - {"/v1/messages"}
    sessions = {path for path in sources() if path.startswith(("/realtime/", "/live/"))}
    assert sessions == by_header | SESSIONS_OUT_OF_SCOPE.keys()


def test_types() -> None:
    """A type with an identifier is the arguments of a call above, or there is a reason."""
    used = "".join(call.source for call in known_calls().values())
    own = {name for name in known_types() if _is_used(name, used)}
    assert own
    assert known_types().keys() - own <= TYPES_OUT_OF_SCOPE.keys()


def _is_used(name: str, sources: str) -> bool:
    module, kind = name.split(".")[-2:]
    return f"{module}." in sources or f"session: {kind}" in sources


def test_reasons_are_needed() -> None:
    """Each exception names a call or type that exists."""
    assert CALLS_OUT_OF_SCOPE.keys() <= known_calls().keys()
    assert TYPES_OUT_OF_SCOPE.keys() <= known_types().keys()
    calls = known_calls()
    helpers = [name for name in calls if name.endswith(HELPERS)]
    assert helpers
    for name in helpers:
        assert calls[f"{name.rpartition('.')[0]}.create"].taken == calls[name].taken


def test_bodies() -> None:
    """Calls that send forms and session descriptions are those whose endpoints take them."""
    sent = {path: sources()[path] for path in ENDPOINTS if path in sources()}
    forms = {path for path, source in sent.items() if "multipart/form-data" in source}
    assert forms == {name for name, endpoint in ENDPOINTS.items() if endpoint.takes_form}
    offers = {path for path, source in sent.items() if '{"sdp": ("application/sdp"' in source}
    assert offers == {name for name, endpoint in ENDPOINTS.items() if endpoint.takes_sdp}


def test_models() -> None:
    """Calls of sessions take a model of their own where their endpoints are said to."""
    for path, endpoint in ENDPOINTS.items():
        if endpoint.safety_header:
            assert endpoint.takes_model == ('"model": model' in sources()[path]), path


def test_the_longest_safety_identifier() -> None:
    """Our bound of a safety_identifier is OpenAI's."""
    defined = {
        inspect.getsource(inspect.getmodule(kind) or kind) for kind in known_types().values()
    }
    stated = re.findall(
        r"safety_identifier: (?:(?!\"\"\").)*\"\"\"(?:(?!\"\"\").)*?maximum\s+length\s+of\s+(\d+)",
        "".join(defined),
        re.DOTALL,
    )
    assert {int(number) for number in stated} == {MAX_SAFETY_IDENTIFIER}
