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

from typing_extensions import is_typeddict

from policyd.engine.endpoints import ENDPOINTS
from policyd.engine.model import IDENTIFIERS, MAX_SAFETY_IDENTIFIER

# Calls that take an identifier and are no endpoint of the table, each with the reason.
CALLS_OUT_OF_SCOPE = {
    "beta.chatkit.threads.Threads.list": "a GET: the user is what is looked for",
    "responses.responses.ResponsesResponseResource.create": "an event on a WebSocket: 426",
    "beta.responses.responses.ResponsesResponseResource.create": "an event on a WebSocket: 426",
}
# Calls that post as `create` of the same class does.
HELPERS = (".parse", ".stream")
# Types with an identifier that are no call's own arguments, each with the reason.
_LIVE = "the session of a live call, to be judged by OpenAI-Safety-Identifier"
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
    "live.media_session_config_param.MediaSessionConfigParam": _LIVE,
    "live.session_accept_params.Session": _LIVE,
    "live.session_config_param.SessionConfigParam": _LIVE,
}


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


def calls() -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Every synchronous call that takes an identifier: its name, which ones, and its source."""
    for name, kind in members("openai.resources"):
        if "Async" in name:
            continue
        for method, function in vars(kind).items():
            if isinstance(function, FunctionType):
                given = inspect.signature(inspect.unwrap(function)).parameters
                if taken := tuple(one for one in IDENTIFIERS if one in given):
                    yield f"{name}.{method}", taken, inspect.getsource(inspect.unwrap(function))


@cache
def known_calls() -> dict[str, tuple[tuple[str, ...], str]]:
    """The identifiers and the source of each call, by its name."""
    return {name: (taken, source) for name, taken, source in calls()}


@cache
def known_types() -> dict[str, type]:
    """Each type that has an identifier, by its name."""
    return {
        name: kind
        for name, kind in members("openai.types")
        if is_typeddict(kind) and set(IDENTIFIERS) & set(kind.__annotations__)
    }


def path(source: str) -> str:
    """The path that a call posts to."""
    found = re.findall(r"self\._post\(\s*f?\"([^\"?]*)", source)
    assert len(found) == 1, source
    return str(found[0])


def in_scope() -> dict[str, tuple[tuple[str, ...], str]]:
    """Those of the calls that post to an endpoint of the table."""
    return {
        name: call
        for name, call in known_calls().items()
        if name not in CALLS_OUT_OF_SCOPE and not name.endswith(HELPERS)
    }


def test_calls() -> None:
    """Each call posts to an endpoint of the table, which has the same identifiers."""
    found = {name: (path(source), taken) for name, (taken, source) in in_scope().items()}
    assert len(found) >= len(ENDPOINTS)
    for name, (posted, taken) in found.items():
        assert ENDPOINTS[posted].identifiers == taken, name


def test_endpoints() -> None:
    """The package still has a call for each endpoint."""
    assert {path(source) for _, source in in_scope().values()} == set(ENDPOINTS)


def test_types() -> None:
    """A type with an identifier is the arguments of a call above, or there is a reason."""
    sources = "".join(source for _, source in known_calls().values())
    own = {name for name in known_types() if f"{name.split('.')[-2]}." in sources}
    assert own
    assert known_types().keys() - own <= TYPES_OUT_OF_SCOPE.keys()


def test_reasons_are_needed() -> None:
    """Each exception names a call or type that exists."""
    assert CALLS_OUT_OF_SCOPE.keys() <= known_calls().keys()
    assert TYPES_OUT_OF_SCOPE.keys() <= known_types().keys()
    calls = known_calls()
    helpers = [name for name in calls if name.endswith(HELPERS)]
    assert helpers
    for name in helpers:
        assert calls[f"{name.rpartition('.')[0]}.create"][0] == calls[name][0]


def test_forms() -> None:
    """Calls that upload files are those whose endpoint takes a form."""
    sources = [source for _, source in in_scope().values()]
    uploads = {path(source) for source in sources if "multipart/form-data" in source}
    assert uploads == {name for name, endpoint in ENDPOINTS.items() if endpoint.takes_form}


def test_the_longest_safety_identifier() -> None:
    """Our bound of a safety_identifier is OpenAI's."""
    sources = {
        inspect.getsource(inspect.getmodule(kind) or kind) for kind in known_types().values()
    }
    stated = re.findall(
        r"safety_identifier: (?:(?!\"\"\").)*\"\"\"(?:(?!\"\"\").)*?maximum\s+length\s+of\s+(\d+)",
        "".join(sources),
        re.DOTALL,
    )
    assert {int(number) for number in stated} == {MAX_SAFETY_IDENTIFIER}
