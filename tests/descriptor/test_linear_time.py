"""No text that a client sends takes long to read: reading is linear in its length.

Each pattern and each reader gets hostile texts: the time that one text of 16 times the length takes
is compared with that of 16 short ones. Where reading is linear the two are much the same, and where
it is quadratic the former is 16 times the latter.
"""

import ast
import gzip
import importlib
import re
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway import answer_reader, describe, usage
from gateway import headers as gateway_headers
from policyd.decision_log import export, inputs
from policyd.descriptor import evaluate_request, media_type
from policyd.descriptor.body import read_body
from policyd.descriptor.headers import credential, override, trace_id
from policyd.descriptor.identifiers import classify
from policyd.engine import endpoints
from policyd.errors import InvalidArgument
from policyd.http import authzen, check
from policyd.http.request import Request
from policyd.services import ext_authz_request
from policyd.v1 import policy_pb2 as pb

ROOT = Path(__file__).parents[2]
SHORT = 1_000
"""Characters of the shortest text."""
TIMES = (4, 16)
MOST = 4.0
"""How many times as long a text may take as short ones of the same length together."""
CHAT = endpoints.ENDPOINTS["/chat/completions"]
EDITS = endpoints.ENDPOINTS["/images/edits"]


class Pump(NamedTuple):
    """A hostile text: `pump` as often as needed, between a beginning and an end."""

    begin: str
    pump: str
    end: str = ""

    def of_length(self, length: int) -> str:
        return self.begin + self.pump * (length // len(self.pump)) + self.end


_BLANKS = (
    " ",
    "\t",
    "\r",
    "\n",
    "\r\n",
    " \t",
    "\\",
    '"',
    ";",
    "=",
    ",",
    ":",
    "/",
    "a",
    "0",
    "{",
    "[",
)
_ANY = [Pump("", pump, end) for pump in _BLANKS for end in ("", "\0", "\u00ff")]


def _after(*begins: str) -> list[Pump]:
    """The repeatable texts, behind each of `begins`."""
    return [Pump(begin, pump, "\0") for begin in begins for pump in ("", *begins, *_BLANKS) if pump]


# By module and name: the texts most likely to be slow, besides those that every pattern gets.
PATTERNS: dict[str, list[Pump]] = {
    "policyd.command.configuration._FOREIGN": [],  # It reads names of variables.
    "policyd.console.view.log_query.KEY_ID": _after("key_"),
    "policyd.console.view.log_query._ID": [],
    "policyd.console.view.log_query._TRACE": _after("-", "_"),
    "policyd.console.security.sessions._ID": [],
    "policyd.demo.replies._FILE_NAME": _after('filename="', 'filename="a'),
    "policyd.demo.replies._PURPOSE": _after(
        '\r\n name="purpose"', "\r\n", ' name="purpose"\r\n\r\n'
    ),
    "policyd.demo.streams._WORD": [],
    "policyd.demo.upstream._PREFIX": _after("/openai/deployments/", "/openai/v1", "/v1"),
    "policyd.descriptor.form._LIKE": _after("user", "safety_identifier", "[", "user-", "\u017f"),
    "policyd.descriptor.headers._TRACE_ID": _after("-", "_"),
    "policyd.engine.kinds._LIMIT": _after("1", "0"),
    "policyd.engine.kinds._STARS": _after("*", "a*"),
    "policyd.policies.user_format._NUMBER": _after("1", "0"),
    "policyd.policies.user_format._TEMPLATE": _after("{{", "{{a", "{", "}}", "{{ {{"),
    "policyd.engine.endpoints._TARGET": _after("http://", "http:", "a+", "?", "#"),
    "policyd.decision_log.export._WITHIN": _after(";", ';"', ";=", "\t", '"'),
    "policyd.descriptor.form._BOUNDARY": _after("'"),
    "policyd.descriptor.form._HEADER": _after("A:", "A: ", "A"),
    "policyd.descriptor.form._NOT_LETTERS": [],
    "policyd.http.app._HOST": _after("[", "a.", "a:"),
    "policyd.http.check._METHOD": _after("POST", "!"),
    "policyd.http.check._TARGET": _after("/", "http://", "http:", "*"),
    "policyd.descriptor.identifiers._BLANK": _after("\u3164", "\u200b"),
    "policyd.descriptor.json_members._END": [],
    "policyd.descriptor.json_members._NAME": _after('{"', '{ "', '{"a"', '{"a" :', ',"\\'),
    "policyd.descriptor.json_members._SCALAR": _after("1", "]"),
    "policyd.descriptor.json_members._TOKEN": _after('"', '"a"', '"a" :', '"\\', '"\\"', '"\\\\'),
    "policyd.descriptor.json_members._ESCAPED_MARK": [],
    "policyd.descriptor.prompt._TWO_BACKSLASHES": [],
    "policyd.descriptor.usual_prompt._ESCAPED_MARK": [],
    "policyd.descriptor.usual_prompt._FIRST": _after("[", "[ ", "[\t"),
    "policyd.descriptor.prompt._UNICODE": [],
    "policyd.descriptor.prompt._STRINGS": _after('"', '"a"', '"a" :', '"a":"\\"', '"\\"'),
    "policyd.descriptor.prompt._SURROGATE_PAIR": _after("\\ud800", "\\ud800\\u", "\\ud800\\udc00"),
    "policyd.descriptor.prompt._TEXT": _after(
        *('"', '"\\"', '\\"', '"a\\":\\"', '"type":"\\"'),
        *('"a"', '"a" :', '"type"', '"type":"', '"type" : "a",', '"url":"', '"result":"a', '""'),
    ),
    "policyd.descriptor.media_type._EDGE": _after("-", "a-"),
    "policyd.descriptor.media_type._FORM_FIELD": _after("&", "&a", ";a", "&=", "&;"),
    "policyd.descriptor.media_type._PARAMETER": _after(
        "; ", "; a", '; a="', '; a="\\', "; a=a", '; a="" '
    ),
    "policyd.descriptor.media_type._VALUE": _after("a/", "a", "a "),
    "policyd.store.migrations.versions.0009_forms_and_days._ID": _after("'"),
    "policyd.engine.places._HEADER_PLACE": _after("header:", "header:a"),
    "policyd.engine.paths._BREAK": _after("/"),
    "policyd.engine.paths._ENDS_EARLY": _after("?", "#"),
    "policyd.engine.paths._PLAIN_SEPARATOR": _after("/", "\\"),
    "policyd.engine.paths._SEPARATOR": _after("%2", "%5c", "%2f"),
    "policyd.descriptor.placeholders._FORMAT": _after("%(", "%(a)", "{", "{a.", "$", "$a"),
    "policyd.decision_log.record._ID": [],
    "policyd.services.local_messages._FILE": [],
    "policyd.services.local_messages._FOLLOWER": [],
    "policyd.services.local_messages._HEX": [],
    "policyd.services.local_messages._PROCESS": [],
    "policyd.services.local_messages._SPOOL": [],
    "policyd.decider.decision_ids._KEY": [],
    "policyd.setting_rules._PLAIN_URL": _after("http://", "https://a"),
    "policyd.decision_log.spool.reader._IDENTITY": [],
    "policyd.store.partitions._RANGE": _after("FROM (", "FROM ('0", "FROM (MINVALUE) TO ('"),
    "policyd.store.postgresql._GIVEN": _after("-c", "-c ", "--a", "-c a", "-ca "),
    "gateway.connection._TIMEOUT": _after(" timeout", ",timeout =", 'timeout="', " "),
    "gateway.headers._GARBLED": _after("\udc80"),
    "gateway.answer_reader._EVENT": _after("data:", "\ndata:", "\rdata"),
    "gateway.answer_reader._LINE_END": [],
    "gateway.answer_reader._USAGE": _after('"usage"', '"usage" :', '"usage": '),
    "gateway.upstream._ILLEGAL": [],
    "gateway.usage._MEMBER": _after('"id"', '"usage" ', '"model":'),
    "gateway.usage._NAME": _after(
        '"id"', '"id":', '"id":"', '"id":"\\', '"model" : "a', '"id":"\\"'
    ),
    "gateway.usage._RESPONSE_EVENT": _after('"type"', '"type" :', '"type":"response'),
    "policyd.command.units._WITH_UNIT": _after("1", "1.", "1 ", "a"),
    "policyd.console.security.kept_forms._KEY": _after("/keys/key_", "a"),
    "policyd.console.security.kept_forms._SECRET": _after("pas", "secre"),
    "policyd.console.security.kept_forms._SECRET_HEADER": _after("authorizatio", "to"),
    "policyd.console.view.log_query._NUMBER": _after("1"),
    "policyd.console.view.log_query._STATUS": [],
    "policyd.console.view.typed_request._METHOD": _after("A"),
    "policyd.console.view.typed_request._NAME": _after("a", "!"),
    "policyd.decision_log.spool.reader._ID": _after('"', '"0', '"012345678901'),
    "policyd.keys.api_key._DIGEST": _after("a"),
    "policyd.keys.api_key._ID": _after("key_", "a"),
    "policyd.telemetry.access._PLAIN": _after("!", "a"),
    "policyd.telemetry.bounds._NAME": _after("a", "."),
    "policyd.telemetry.exposition._FILE": _after("gauge_", "counter_1"),
    "policyd.telemetry.redaction._SECRETS": _after(
        *("://", "://a:", "up-", "sk-", "Bearer ", "Basic\t", "password=", "password='", "a:"),
    ),
    "policyd.telemetry.log._CONTROL": _after("\r", "a"),
    "policyd.telemetry.log._LINE_BREAK": _after("\r", "\n"),
    "policyd.telemetry.trace_context._FORM": _after("00-", "0", "-"),
    "policyd.telemetry.trace_context._TRACE_ID": _after("0"),
    "policyd.telemetry.tracing._URL": _after("http://", "http://a/", "a", "/"),
}
# Patterns that are built while a setting is read, or that stand in another language.
ELSEWHERE = {
    "integrations/clients/go/main.go": [
        "regexp.MustCompile(`(?i)^(content-(type|encoding)|openai-safety-identifier|x[-_]http[-_]",
    ],
    "integrations/clients/java/src/main/java/example/Gateway.java": [
        "Pattern.compile(",
        "Pattern.CASE_INSENSITIVE);",
        "READ.matcher(field.getName()).matches()",
        'upstream.getRawPath().replaceFirst("/$", "")',
        ".replace('_', '-')",
    ],
    "integrations/clients/node/src/gateway.ts": [
        "READ.test(name)",
        "/websocket/i.test(",
        "!END_TO_END.test(name)",
        "/^x[-_]usagepanda[-_]/i.test(header)",
        r'upstream.pathname.replace(/\/$/, "")',
        '.split(",")',
        'settings.listen.split(":")',
    ],
    "integrations/nginx/policyd.js": ["/websocket/i.test("],
}
_FOREIGN = re.compile(
    r"RegExp|\.match(All)?\(|\.test\(|\.search\(|\.replace(All|First)?\(|\.split\(|regexp\."
    r"|Pattern\.|\.matches\(|:g?(match|sub|find)\(|string\.g?(match|sub|find)"
)


class Found(NamedTuple):
    """A pattern in our code."""

    name: str
    pattern: re.Pattern[Any]
    ways: frozenset[str]
    """The methods of the pattern that the code uses."""


_WAYS = frozenset({"match", "fullmatch", "search", "finditer", "findall", "sub", "split"})


def _files() -> Iterator[tuple[str, ast.Module]]:
    for package in ("policyd", "gateway"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text())


def _is_re(node: ast.AST, *functions: str) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "re"
        and (not functions or node.func.attr in functions)
    )


@cache
def _found() -> tuple[list[Found], list[str]]:
    """The patterns that stand in a module's globals, and the calls of `re` that stand elsewhere."""
    found, stray = [], []
    for module, tree in _files():
        names: set[str] = set()
        known: set[ast.AST] = set()
        for node in tree.body:
            if isinstance(node, ast.Assign) and _is_re(node.value, "compile"):
                known.add(node.value)
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        for part in ast.walk(tree):
            if _is_re(part) and part not in known and not _is_re(part, "escape"):
                stray.append(f"{module}: {ast.unparse(part)}")
        found += [_describe(module, name, tree) for name in sorted(names)]
    return found, stray


def _describe(module: str, name: str, tree: ast.Module) -> Found:
    pattern = getattr(importlib.import_module(module), name)
    ways = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == name
    }
    return Found(f"{module}.{name}", pattern, frozenset(ways & _WAYS) or frozenset({"search"}))


def _time(function: Callable[[str], object], text: str, times: int) -> int:
    """The processor time, in nanoseconds, of reading `text` so many times."""
    began = time.thread_time_ns()
    for _ in range(times):
        function(text)
    return time.thread_time_ns() - began


def _ratio(function: Callable[[str], object], pump: Pump, times: int) -> float:
    """How many times as long one text takes as so many short ones, by the best of a few tries.

    It stops once the ratio is as it should be, so that linear code is quick to test.
    """
    short, long = pump.of_length(SHORT), pump.of_length(times * SHORT)
    taken = []
    for _ in range(6):
        taken.append((_time(function, long, 1), _time(function, short, times)))
        ratio = min(one for one, _ in taken) / max(min(other for _, other in taken), 1)
        if ratio < MOST:
            break
    return ratio


def _check(function: Callable[[str], object], pump: Pump) -> None:
    for times in TIMES:
        ratio = _ratio(function, pump, times)
        assert ratio < MOST, f"{pump} of {times} times the length takes {ratio:.1f} times as long"


def test_every_pattern_is_in_the_table() -> None:
    """A new pattern must be added to the table above, with the texts most likely to be slow."""
    found, stray = _found()
    assert stray == []
    assert {one.name for one in found} == PATTERNS.keys()


def test_patterns_in_other_languages() -> None:
    """Patterns in other languages are few, anchored or constant, and listed above."""
    for suffix in ("ts", "js", "lua", "go", "java"):
        for path in (ROOT / "integrations").rglob(f"*.{suffix}"):
            if "node_modules" in path.parts or {"dist", "stubs", "target"} & set(path.parts):
                continue
            name = str(path.relative_to(ROOT))
            lines = [line for line in path.read_text().splitlines() if _FOREIGN.search(line)]
            known = ELSEWHERE.get(name, [])
            assert all(any(one in line for one in known) for line in lines), (name, lines)


def _way(pattern: re.Pattern[Any], way: str) -> Callable[[Any], object]:
    method = getattr(pattern, way)
    if way == "sub":
        return lambda text: method(text[:0], text)
    if way == "finditer":
        return lambda text: sum(1 for _ in method(text))
    return method  # type: ignore[no-any-return]  # of a pattern of either kind


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_linear(name: str) -> None:
    """Each pattern is linear over each hostile text, by each method that the code uses."""
    (one,) = [one for one in _found()[0] if one.name == name]
    is_bytes = isinstance(one.pattern.pattern, bytes)
    for way in one.ways:
        read = _way(one.pattern, way)
        for pump in (*_ANY, *PATTERNS[name]):
            if is_bytes:
                _check(lambda text: read(text.encode("latin-1", "replace")), pump)  # noqa: B023  # It is called in this turn.
            else:
                _check(read, pump)


# --- readers -----------------------------------------------------------------------------------


def _type_of(endpoint: Any) -> Callable[[str], object]:
    body = b'{"user": "a", "model": "m"}'
    return lambda text: read_body(body, text, "", endpoint)


def _part(head: str) -> object:
    body = f'--B\r\nContent-Disposition: form-data; name="x"{head}\r\n\r\na\r\n--B--\r\n'
    return read_body(body.encode("latin-1"), FORM, "", EDITS)


def _parts(text: str) -> object:
    body = b"--B\r\n" + text.encode("latin-1") + b"\r\n--B--\r\n"
    return read_body(body, FORM, "", EDITS)


def _json(text: str) -> object:
    return read_body(text.encode("latin-1"), "application/json", "", CHAT)


def _prompt(text: str) -> object:
    """Read JSON that stands under every name of a prompt."""
    members = (f'"{name}":{text}' for name in ("prompt", "messages", "input", "Prompt"))
    body = f"{{{','.join(members)}}}"
    return read_body(body.encode("latin-1"), "application/json", "", CHAT)


def _urlencoded(text: str) -> object:
    body = b'{"user": "a", "x": "' + text.encode("latin-1").replace(b'"', b"'") + b'"}'
    return read_body(body, "application/x-www-form-urlencoded", "", CHAT)


def _streams(text: str) -> object:
    return read_body(gzip.compress(b"") * (len(text) // 20), "", "gzip", CHAT)


def _raw_headers(text: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-usagepanda-api-key", line.encode("latin-1")) for line in text.split("\n")]


def _grpc(text: str) -> object:
    headers = [
        pb.Header(name=name, value=line)
        for line in text.split("\n")
        for name in ("x-usagepanda-enforce-user-ids", "x-usagepanda-api-key", "content-type")
    ]
    request = pb.EvaluateRequest(method="POST", path="/v1/chat/completions", headers=headers)
    request.raw_body.content = b"{}"
    reading = evaluate_request.read(request)
    return inputs.override_texts(reading.decision_input.overrides)


def _http_check(text: str) -> object:
    scope = {
        "method": "POST",
        "raw_path": b"/v1/check",
        "query_string": b"",
        "has_fragment": False,
        "is_spare": False,
        "scheme": "http",
        "headers": [
            *_raw_headers(text),
            (b"x-forwarded-method", text.encode("latin-1")),
            (b"x-forwarded-uri", text.encode("latin-1")),
            (b"x-forwarded-for", text.encode("latin-1")),
        ],
    }
    request = Request(scope, lambda: None, 1.0)  # type: ignore[arg-type,return-value]  # none is read
    try:
        return check._original(request), request.source_ip
    except InvalidArgument:
        return request.source_ip


def _gateway(text: str) -> object:
    raw = [*_raw_headers(text), (b"connection", text.encode("latin-1"))]
    headers = gateway_headers.read_request(raw)
    return headers.names_key, headers.is_garbled, describe.is_too_large(b"/", headers)


def _authzen(text: str) -> object:
    try:
        return authzen._decode(text.encode("latin-1"), authzen._Evaluation)
    except InvalidArgument:
        return None


def _events(text: str) -> object:
    reader = answer_reader.EventReader()
    data = text.encode("latin-1")
    for begin in range(0, len(data), 100):
        reader.feed(data[begin : begin + 100])
    return reader.metadata()


def _envoy(text: str) -> object:
    names = ("x-usagepanda-enforce-user-ids", "x-usagepanda-api-key", "content-type", "upgrade")
    return [ext_authz_request._repeats(name, text, True) for name in names]


def _parsed(text: str) -> object:
    try:
        return media_type.parse(text)
    except ValueError:
        return None


FORM = "multipart/form-data; boundary=B"
_PARTS = [
    *(
        Pump('"', text, '"')
        for text in ("\\\\", '\\"', '\\\\\\"', "\\n", "\\u00e9", "\\ud83d", "\u00e9")
    ),
    *(Pump('"', text, '"') for text in ("\\ud83d\\udc3c", ":", ",1", "[", " ", '\\":\\"')),
    *(Pump(f'{{"{name}":"', "a", '"}') for name in ("role", "url", "result", "text", "x")),
    Pump('{"', "type", '":"a"}'),
]
_PARTS_OF_MESSAGES = [
    *('""', "{}", "[]", '{"role":"user","content":""}', '{"type":"text","text":""}'),
    *('{"url":""}', '{"result":"A"}', '{"type":{"type":"a"}}'),
]
_WORDS = ["charset", "charset=", "; charset=a", "boundary=", ';a="', "multipart", "*", "a/"]
_TYPES = [Pump("application/json", word) for word in _WORDS]
READERS: dict[str, tuple[Callable[[str], object], list[Pump]]] = {
    "a Content-Type of JSON": (_type_of(CHAT), [*_ANY, *_TYPES, *_after("a/b; charset", "a/b;")]),
    "a Content-Type of a form": (
        _type_of(EDITS),
        [*_TYPES, *_after(FORM, "multipart/form-data; boundary", 'multipart/form-data; a="')],
    ),
    "a Content-Encoding": (
        lambda text: read_body(b"{}", "", text, CHAT),
        [*_ANY, *_after("gzip,", "gzip;", "identity,")],
    ),
    "streams in a row": (_streams, [Pump("", "a")]),
    "a part's headers": (
        _part,
        [*_after("", ';a="', "; a=", "\r\nA:", '; filename="\\"'), Pump("\r\nA:", " ", "\1")],
    ),
    "the parts of a form": (
        _parts,
        _after(
            "--B",
            "\r\n--B\r\n",
            "--B\r\nA: b\r\n\r\n",
            '--B\r\nContent-Disposition: form-data; name="user"\r\n\r\n',
        ),
    ),
    "JSON": (
        _json,
        [
            *_ANY,
            *_after('{"user":"', '{"user":', '{"a":1,', '{"user":"a","a":"', '{"a":{'),
            Pump('{"user":"a"', ',"user":"a"', "}"),
            Pump('{"user":"a"', ',"user" : 1', "}"),
            Pump('{"user":"a","a":"', "\\u0055", '"}'),
            Pump('{"user":"a","a":"', '\\"user\\":', '"}'),
            Pump('{"user":"a","user":"', "\\u0020", '"}'),
            Pump('{"user":', "1", "}"),
            Pump('{"user":0.', "0", "}"),
            Pump('{"user":1', "0", ',"user":"a"}'),
            Pump('{"user":"a","a":[', "[],", "1]}"),
            Pump('{"user":"a","a":[', "{},", "1]}"),
            Pump('{"user":"a","a":[', '{"user":"a"},', "1]}"),
            *(Pump(f'{{"{name}":', "1", "}") for name in ("max_tokens", "n", "prompt")),
            Pump('{"max_tokens":', "0", "}"),
            Pump('{"max_tokens":1', ',"max_tokens":1', "}"),
            Pump('{"max_tokens":1', ',"Max_Tokens":null', "}"),
            Pump('{"model":"a"', ',"model":"a"', "}"),
            Pump('{"model":"', "a", '"}'),
            Pump('{"metadata":{}', ',"metadata":{"user_id":"a"}', "}"),
            Pump('{"metadata":{"user_id":"a"', ',"user_id":"a"', "}}"),
            Pump('{"metadata":{"a":[', '{"user_id":"a"},', "1]}}"),
        ],
    ),
    "the prompt of JSON": (
        _prompt,
        [
            *_PARTS,
            *(Pump("[", part + ",", '""]') for part in _PARTS_OF_MESSAGES),
            Pump('[{"role":"user"', ',"content":"a"', "}]"),
            Pump('[{"role":"user","content":[', '"",', '""]}]'),
            Pump("[1", ",1", "]"),
            Pump("[[1]", ",[1]", "]"),
            Pump("[1", ",null,1", "]"),
            Pump('["a"', ',1,"a"', "]"),
            Pump("[", " ", "]"),
            Pump('["a"', " ", "]"),
            Pump('{"a"', " ", ":1}"),
        ],
    ),
    "JSON of type urlencoded": (_urlencoded, [*_ANY, *_after("&", "&a", "&%6d", "&a=", ";")]),
    "headers over gRPC": (
        _grpc,
        [Pump("", "a\n"), Pump("", "true\n"), Pump("", "\n"), Pump("", " ")],
    ),
    "headers of Envoy": (_envoy, [*_ANY, Pump("", "true,"), Pump("", ", ")]),
    "headers of a check": (_http_check, [*_ANY, Pump("", "1:"), Pump("", "1."), Pump("/", "%")]),
    "headers of the gateway": (_gateway, [*_ANY, Pump("", "a,"), Pump("", "a\n")]),
    "a path": (
        lambda text: endpoints.resolve("POST", text),
        [
            *_ANY,
            *_after(
                "/../", "/./", "/;", "%25", "//", "/%2e%2e/", "/openai/deployments/", "http://"
            ),
        ],
    ),
    "an AuthZEN evaluation": (_authzen, [*_ANY, *_after('{"subject":', '{"subject":{"type":"')]),
    "an end user": (classify, [*_ANY, Pump("", "\u200b"), Pump("", "\u3000")]),
    "a cell of the export": (export._cell, [*_ANY, *_after(";", ';"', ";=", "\t")]),
    "a parameter": (_parsed, [*_ANY, *_after("a/b;", 'a/b; a="', 'a/b; a="\\')]),
    "an answer": (
        lambda text: usage.of_document(text.encode("latin-1")),
        [*_ANY, *_after('{"id":"')],
    ),
    "the ends of an answer": (
        lambda text: usage.of_ends(text.encode("latin-1"), text.encode("latin-1")),
        [*_ANY, *_after('{"id":"', '"id":"', '"usage":{', '"model" ')],
    ),
    "a stream of events": (_events, [*_ANY, *_after("data:", "\ndata:", '"usage":{', "\r")]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_reader_is_linear(name: str) -> None:
    """Each reader of headers, bodies and answers is linear over each hostile text."""
    function, pumps = READERS[name]
    for pump in pumps:
        _check(function, pump)


def test_the_bounds_of_headers() -> None:
    """A header that is longer than needed is rejected before it is parsed."""
    long = "application/json; x=" + "a" * media_type.MAX_CONTENT_TYPE
    with pytest.raises(ValueError, match="too long"):
        media_type.media_type(long)
    assert override("false" + " " * 1000) != "false"
    assert not trace_id("a" * 100)
    _, key = credential(("a" * 5000,))
    assert len(key) < 100
