"""Reading the user from bodies: JSON, forms, compressed bodies, and hostile bodies."""

import gzip
import importlib
import json
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Required, get_origin, get_type_hints

import brotli
import pytest

from policyd.descriptor import json_body, json_members, media_type
from policyd.descriptor.body import read_body
from policyd.descriptor.form import MAX_PART_HEAD
from policyd.descriptor.identifiers import BodyAttributes, Identifier
from policyd.descriptor.json_members import MAX_DEPTH
from policyd.engine import endpoints
from policyd.engine.places import Endpoint
from policyd.engine.states import UserState
from tests.support.codings import COMPRESS

EDITS = endpoints.ENDPOINTS["/images/edits"]
CHAT = endpoints.ENDPOINTS["/chat/completions"]
FORM = "multipart/form-data; boundary=B"
GOOD = b'{"user": "alice", "model": "gpt-4o"}'
MIB = 2**20


def read(
    body: bytes, kind: str = "application/json", coding: str = "", limit: int = MIB
) -> BodyAttributes:
    endpoint = EDITS if kind.startswith("multipart") else CHAT
    return read_body(body, kind, coding, endpoint, limit)


def state(body: bytes, kind: str = "application/json", coding: str = "") -> UserState:
    return read(body, kind, coding).user.state


def form(*parts: tuple[str, bytes]) -> bytes:
    chunks = [
        f"--B\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + value + b"\r\n"
        for head, value in parts
    ]
    return b"".join(chunks) + b"--B--\r\n"


def deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


CODINGS = COMPRESS | {"x-gzip": gzip.compress}


def test_json() -> None:
    """User and model are read from JSON, whatever its Content-Type is."""
    for kind in ("application/json", "", "text/plain", "application/x-www-form-urlencoded"):
        attributes = read(GOOD, kind)
        assert (attributes.user.state, attributes.user.value) == (UserState.VALID, "alice")
        assert attributes.model == "gpt-4o"


def test_invalid_utf8() -> None:
    """A body that is not UTF-8 is not JSON, wherever the bad bytes stand."""
    assert state(b'{"user": "alice", "x": "\xff"}') is UserState.NOT_JSON
    assert state(b'{"user": "\xff"}') is UserState.NOT_JSON
    for begin in (b"{}", b"[]"):
        assert state(begin + b"\xc3") is state(b"\xc3" + begin) is UserState.NOT_JSON


def test_byte_order_mark() -> None:
    """A body with a byte order mark is not JSON."""
    assert state(b"\xef\xbb\xbf" + GOOD) is UserState.NOT_JSON
    assert state(GOOD.decode().encode("utf-16")) is UserState.NOT_JSON


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting(opening: str) -> None:
    """Nesting is read to its bound and rejected beyond, at 2,000 and at 200,000 levels alike."""
    closing = "]" if opening == "[" else "}"
    for depth, expected in (
        (MAX_DEPTH - 1, UserState.VALID),
        (MAX_DEPTH, UserState.TOO_COMPLEX),
        (2_000, UserState.TOO_COMPLEX),
        (100_000, UserState.TOO_COMPLEX),
    ):
        nested = opening * depth + ("1" if closing == "}" else "") + closing * depth
        assert state(f'{{"user": "a", "x": {nested}}}'.encode()) is expected


def test_brackets_in_strings_do_not_nest() -> None:
    """Text with many brackets, such as source code, is read like any other."""
    body = json.dumps({"messages": [{"content": '{["\\' * 5000}], "user": "alice"}).encode()
    assert state(body) is UserState.VALID


@pytest.mark.parametrize(
    ("begin", "piece", "most"),
    [
        # The brackets of the object and of the list count, too.
        (b'{"user": "a", "x": [', b"[],", json_members.MAX_TOKENS - 2),
        # As do the strings before them.
        (b'{"user": "a", "x": [', b'"",', json_members.MAX_STRINGS - 3),
        (b'{"user": "a", "y": [' + b"[]," * MAX_DEPTH + b'0], "x": [', b'"",', 999_996),
        # Here each string and each bracket is looked at, as a name stands there twice.
        (b'{"user": "a", "user": "b", "x": [', b'"",', json_members.MAX_TOKENS - 9),
    ],
    ids=["brackets", "strings", "strings beside brackets", "tokens"],
)
def test_many_parts(begin: bytes, piece: bytes, most: int) -> None:
    """A body may have so many strings and brackets, and not one more."""
    for count, expected in ((most, UserState.VALID), (most + 1, UserState.TOO_COMPLEX)):
        body = begin + (piece * count)[:-1] + b"]}"
        assert read(body, limit=64 * MIB).user.state is expected


@pytest.mark.parametrize("text", ['"', '["', '{\\"}]', "[[[[{{{{", '\\\\"', "\\"])
def test_what_stands_in_strings_is_no_structure(text: str) -> None:
    """Code, JSON in JSON and quotations in strings do not count, however many there are."""
    content = text * (3 * json_members.MAX_TOKENS // len(text))
    body = json.dumps({"messages": [{"content": content}], "user": "alice"}).encode()
    assert read(body, limit=64 * MIB).user == Identifier(UserState.VALID, "alice")
    nested = body[:-1] + b', "x": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}"
    assert read(nested, limit=64 * MIB).user.state is UserState.TOO_COMPLEX
    less = body[:-1] + b', "x": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert read(less, limit=64 * MIB).user.state is UserState.VALID


def test_repeats_behind_a_tool_that_has_a_user_too() -> None:
    """A property called user in a tool's schema is not the request's user."""
    tool = {"function": {"parameters": {"properties": {"user": {"type": "string"}}}}}
    assert state(json.dumps({"tools": [tool], "user": "a"}).encode()) is UserState.VALID
    assert state(json.dumps({"tools": [tool, tool]}).encode()) is UserState.ABSENT


@pytest.mark.parametrize("coding", CODINGS)
def test_compressed(coding: str) -> None:
    """Each coding is decoded, applied once or several times, in any letter case."""
    data = CODINGS[coding](GOOD)
    assert state(data, coding=coding) is UserState.VALID
    assert state(data, coding=f" {coding.upper()} ") is UserState.VALID
    assert state(gzip.compress(data), coding=f"{coding}, gzip") is UserState.VALID
    assert state(data, coding=f"identity,{coding}") is UserState.VALID


def test_the_list_of_codings() -> None:
    """An element that is empty, as any list in a header may have, stands for no coding."""
    for coding in ("gzip,", ", gzip", "gzip, ,identity", "\tgzip\t", "gzip".rjust(256)):
        assert state(gzip.compress(GOOD), coding=coding) is UserState.VALID
    assert state(GOOD, coding=",") is UserState.VALID


@pytest.mark.parametrize("coding", CODINGS)
def test_the_bound_of_a_compressed_body(coding: str) -> None:
    """A body may decompress to its bound, to the byte."""
    data = CODINGS[coding](GOOD.ljust(1000))
    assert read(data, coding=coding, limit=1000).user.state is UserState.VALID
    assert read(data, coding=coding, limit=999).user.state is UserState.TOO_LARGE


@pytest.mark.parametrize("coding", CODINGS)
def test_damaged(coding: str) -> None:
    """Half a stream, a stream with bytes behind it, and no stream at all are unreadable."""
    data = CODINGS[coding](GOOD * 100)
    for damaged in (data[:-1], data[: len(data) // 2], data + b"\0\1", GOOD, b""):
        assert state(damaged, coding=coding) is UserState.BAD_ENCODING


@pytest.mark.slow
@pytest.mark.parametrize("coding", CODINGS)
def test_bomb(coding: str) -> None:
    """A body that would decompress beyond the bound is rejected, one coding deep or two."""
    bomb = CODINGS[coding](b" " * 32 * MIB)
    assert state(bomb, coding=coding) is UserState.TOO_LARGE
    assert state(gzip.compress(bomb), coding=f"{coding}, gzip") is UserState.TOO_LARGE


@pytest.mark.slow
@pytest.mark.parametrize("coding", CODINGS)
def test_the_memory_that_a_bomb_takes(coding: str) -> None:
    """A body that is rejected for what it decompresses to has not been decompressed as a whole."""
    bomb = CODINGS[coding](b" " * 32 * MIB)
    assert _peak(lambda: state(bomb, coding=coding)) < 8 * MIB


def _peak(work: Callable[[], object]) -> int:
    """The most bytes that are in use at once during `work`, beside those that were before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.parametrize("coding", CODINGS)
def test_small_bomb(coding: str) -> None:
    """A small body may grow a hundredfold and no more, however large the bound is."""
    bomb = CODINGS[coding](GOOD + b" " * 16 * MIB)
    assert read(bomb, coding=coding, limit=64 * MIB).user.state is UserState.TOO_LARGE
    plain = CODINGS[coding](GOOD + b" " * 200_000)
    assert read(plain, coding=coding, limit=64 * MIB).user.state is UserState.VALID


def test_a_name_behind_invisible_characters() -> None:
    """A name behind invisible characters is looked for among the first thousand characters only."""
    hidden = json.dumps({"user": "\u200b" * 100_000 + "alice"}).encode()
    assert state(hidden) is UserState.BLANK


URLENCODED = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    "text",
    [
        "&model=gpt-4o&prompt=hi&",
        ";model=gpt-4o;prompt=hi;",
        "&%6dodel=gpt-4o&",
        "& MODEL =gpt-4o&",
        "&messages[0][content]=hi",
        "&image[]=a",
        "&user=bob",
        "&+input=a",
        "&" * 2 + "model=",
        ";a=" * 2000,
    ],
)
def test_a_field_that_an_endpoint_asks_for(text: str) -> None:
    """JSON that an upstream could take for a form is rejected if its type declares a form."""
    body = json.dumps({"user": "a", "x": text}).encode()
    for kind in (URLENCODED, URLENCODED.upper() + "; charset=utf-8", URLENCODED + "+json"):
        assert state(body, kind) is UserState.NOT_JSON
    assert state(body) is UserState.VALID


@pytest.mark.parametrize(
    ("fields", "expected"),
    [(media_type.MAX_FIELDS, UserState.VALID), (media_type.MAX_FIELDS + 1, UserState.NOT_JSON)],
)
def test_the_most_fields(fields: int, expected: UserState) -> None:
    """JSON with more fields than are looked at is rejected if its type declares a form."""
    body = json.dumps({"user": "a", "x": "&a=" * fields}).encode()
    assert state(body, URLENCODED) is expected


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("completion_create_params", "CompletionCreateParamsNonStreaming"),
        ("chat.completion_create_params", "CompletionCreateParamsNonStreaming"),
        ("embedding_create_params", "EmbeddingCreateParams"),
        ("image_edit_params", "ImageEditParamsNonStreaming"),
        ("image_generate_params", "ImageGenerateParamsNonStreaming"),
        ("image_create_variation_params", "ImageCreateVariationParams"),
    ],
)
def test_no_form_can_do_without_a_field_that_is_looked_for(module: str, name: str) -> None:
    """The required fields of OpenAI's own types are among the fields that the reader looks for."""
    # The package takes a second to load, which only the process that runs this test spends.
    parameters = getattr(importlib.import_module(f"openai.types.{module}"), name)
    hints = get_type_hints(parameters, include_extras=True)
    required = {name.encode() for name, hint in hints.items() if get_origin(hint) is Required}
    assert required
    assert required <= media_type.ASKED_FOR


@pytest.mark.parametrize(
    "text", ["Tom & Jerry", "a&b=2", "if (a && b) x = 1; y = 2;", "https://e.org/?a=1&utm_source=b"]
)
def test_what_curl_sends_without_a_content_type(text: str) -> None:
    """JSON is read as JSON though curl calls it a form, where that form could not be a request."""
    body = json.dumps({"user": "a", "prompt": text}).encode()
    assert state(body, URLENCODED) is UserState.VALID
    assert state(gzip.compress(body), URLENCODED, "gzip") is UserState.NOT_JSON


@pytest.mark.parametrize(
    "kind",
    [
        "application/json;",
        "application/json; charset=UTF-8",
        'application/json;charset="utf-8" ;',
        "application/json; charset=utf8",
        "text/plain;charset=UTF-8",
        "application/vnd.api+json; profile=x",
        " application/json ",
        "json",
        "application/json; charset=us-ascii",
        "text/plain; charset=ISO-8859-1",
    ],
)
def test_content_types_of_json(kind: str) -> None:
    """A type by which servers read JSON as JSON, or not at all, is accepted."""
    assert state(GOOD, kind) is UserState.VALID


@pytest.mark.parametrize(
    "kind",
    [
        "application/json; charset=utf-7",
        "application/json; charset=utf-8X",
        "application/json;charset = 'utf-16'",
        "application/json; charset*=utf-8''utf-7",
        "application/json; charset*0=utf-; charset*1=7",
        'application/json; charset="utf\\-7"',
        "application/json; charset=utf-8; charset=utf-7",
        "application/json; charset=utf-8; CHARSET=utf-8",
        "application/json; xcharset=utf-7",
        'application/json; x="; charset=utf-7"',
        "application/json; charset=",
        'application/json; charset=""',
        "application/json charset=utf-8",
        "application/json, text/plain",
        "application/json;\tcharset=utf-8",
        "application/json;; charset=utf-8",
        "application/json; charset",
        "application/json\x00",
        "application/json\u00a0",
        f"{URLENCODED} x",
        f"{URLENCODED}, application/json",
        f"application/json, {URLENCODED}",
        f"{URLENCODED}\x0b",
        "multipart/form-data; boundary=B",
        "multipart/form-data x",
        "multipart/mixed; boundary=B",
        "application/json/multipart",
        "/",
        "application/",
        "\u017fon",
        "application/json; x=" + "a" * 2000,
    ],
)
def test_content_types_that_servers_read_differently(kind: str) -> None:
    """JSON under such a type is rejected: the upstream may read it as something else."""
    attributes = read_body(GOOD, kind, "", CHAT)
    assert attributes.user.state is UserState.NOT_JSON


@pytest.mark.parametrize("charset", ["us-ascii", "iso-8859-1", "windows-1252", "latin1"])
def test_charsets_that_differ_outside_ascii(charset: str) -> None:
    """Such a charset is taken for UTF-8 only if the body is ASCII."""
    assert state('{"user": "Zo\u00eb"}'.encode(), f"text/plain; charset={charset}") is (
        UserState.NOT_JSON
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"user": "a", "user": "a", "model": "m"}',
        '{"user": "a", "x": {"user": ""}, "y": ["user", {"user": ""}], "user": "b"}',
        '{"x": "user", "user": "a", "y": "user", "user": "b", "z": "user"}',
    ],
)
def test_repeats_beside_other_members(text: str) -> None:
    """Repeats at the top level count, whatever else the body holds."""
    assert state(text.encode()) is UserState.VALID
    assert state(text.encode()[:-1] + b', "user": ""}') is UserState.EMPTY


@pytest.mark.parametrize("name", ["USER", "User", "U\\u0053er", "u\u017fer", "u\\u017Fer"])
def test_names_in_other_letter_case(name: str) -> None:
    """Some servers read names in any letter case, so such a name beside `user` counts."""
    for first, second in (('"user": "a"', f'"{name}": ""'), (f'"{name}": ""', '"user": "a"')):
        assert state(f"{{{first}, {second}}}".encode()) is UserState.EMPTY
    assert state(f'{{"{name}": "a"}}'.encode()) is UserState.ABSENT
    assert state(f'{{"{name}": "a", "{name}": "b"}}'.encode()) is UserState.ABSENT


def test_bare_deflate() -> None:
    """deflate means zlib's format: bare deflate is rejected, as a server could read it as text."""
    assert state(deflate(GOOD), coding="deflate") is UserState.BAD_ENCODING


def test_several_streams() -> None:
    """A body of several streams is rejected, as some servers read only the first."""
    for coding, compress in CODINGS.items():
        several = compress(GOOD) + compress(b" ")
        assert state(several, coding=coding) is UserState.BAD_ENCODING


def brotli_like_json(body: bytes) -> bytes:
    """`body` in Brotli's format, of one piece that is not compressed, beginning with a brace."""
    return b"\r{\x80" + body.ljust(247) + b"\x03"


def test_a_coded_body_that_begins_like_json() -> None:
    """A body that a server might read without decoding it is rejected, one coding deep or two."""
    data = brotli_like_json(GOOD)
    assert brotli.decompress(data).strip() == GOOD
    assert state(data, coding="br") is UserState.BAD_ENCODING
    assert state(gzip.compress(data), coding="br, gzip") is UserState.BAD_ENCODING
    assert (
        state(brotli_like_json(form(('name="user"', b"a"))), FORM, "br") is UserState.BAD_ENCODING
    )
    for begin in (
        b"{",
        b" \r\n\t{",
        b"\xef\xbb\xbf{",
        b"\xff\xfe{\0",
        b"\0{",
        b"/*",
        b"/* a */{",
        b"//",
        b"// a\n{",
        b" " * 2000,
    ):
        assert json_body.begins_like_json(begin)
    for begin in (b"[", b"/", b"/{", b"a{", b'"', b"\x1f\x8b{"):
        assert not json_body.begins_like_json(begin)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_coded_form_that_reads_as_another(coding: str) -> None:
    """A coded form is read, unless its boundary can be found without decoding it."""
    prompt = " ".join(map(str, range(500))).encode()
    body = form(('name="prompt"', prompt), ('name="user"', b"alice"))
    data = CODINGS[coding](body)
    assert read(data, FORM, coding).user.state is UserState.VALID
    other = form(('name="prompt"', b"hi"))
    extra = len(other).to_bytes(2, "little") + other
    with_other = b"\x1f\x8b\x08\x04" + bytes(6) + extra + gzip.compress(body, mtime=0)[10:]
    assert gzip.decompress(with_other) == body
    assert read(with_other, FORM, "gzip").user.state is UserState.BAD_ENCODING


@pytest.mark.parametrize(
    "coding",
    [
        *("snappy", "gzip, snappy", "gzip gzip", "gzip," * 5),
        *("gzip\u00a0", "gzip\n", "\x0bgzip", "gzip".rjust(257)),
    ],
)
def test_unknown_codings(coding: str) -> None:
    """A body with an unknown coding, or with too many codings, is unreadable."""
    assert state(GOOD, coding=coding) is UserState.UNSUPPORTED_ENCODING


def test_over_the_bound() -> None:
    """A body over the bound is not read."""
    assert read(b" " * 11, limit=10).user.state is UserState.TOO_LARGE
    assert read(b" " * 10, limit=10).user.state is UserState.NOT_JSON


def test_form() -> None:
    """The form field `user` is the user, and `model` the model."""
    attributes = read(form(('name="user"', b"alice"), ('name="model"', b"dall-e-2")), FORM)
    assert (attributes.user.state, attributes.user.value) == (UserState.VALID, "alice")
    assert attributes.model == "dall-e-2"
    assert read(form(('name="user"', b"alice")), FORM).model == ""


def test_a_long_identifier_in_a_form() -> None:
    """An identifier in a form may be as long as in JSON."""
    body = form(('name="user"', b"a" * 1000), ('name="safety_identifier"', b"a" * 1000))
    as_json = json.dumps({"user": "a" * 1000, "safety_identifier": "a" * 1000}).encode()
    assert read(body, FORM)[:2] == read(as_json)[:2]
    assert read(body, FORM).safety_identifier.state is UserState.TOO_LONG


@pytest.mark.parametrize(
    ("more", "expected"), [(0, UserState.VALID), (1, UserState.BAD_FORM)], ids=["most", "more"]
)
def test_the_longest_head_of_a_part(more: int, expected: UserState) -> None:
    """A part's headers, with the line break before them, are read up to their bound."""
    head = b'\r\nContent-Disposition: form-data; name="x"; filename=""'
    name = "a" * (MAX_PART_HEAD - len(head) + more)
    body = form((f'name="x"; filename="{name}"', b""), ('name="user"', b"a"))
    assert state(body, FORM) is expected


@pytest.mark.parametrize("end", [b"--", b"--\r\n"])
@pytest.mark.parametrize("kind", [FORM, FORM + "; charset=UTF-8", "Multipart/Form-Data;Boundary=B"])
def test_other_spellings_of_a_form(kind: str, end: bytes) -> None:
    """A form is read with a charset that changes nothing, and without its last line break."""
    body = form(('name="user"', b"alice")).removesuffix(b"--\r\n") + end
    assert read_body(body, kind, "", EDITS).user.value == "alice"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], UserState.ABSENT),
        ([('name="prompt"', b"user")], UserState.ABSENT),
        ([('name="user"; filename="user"', b"alice")], UserState.ABSENT),
        ([('name="user"; filename=""', b"alice")], UserState.ABSENT),
        ([('name="image"; filename="user"', b'name="user"')], UserState.ABSENT),
        ([('name="user"', b"")], UserState.EMPTY),
        ([('name="user"', b" \t ")], UserState.BLANK),
        ([('name="user"', b"a"), ('name="user"', b"")], UserState.EMPTY),
        ([('name="user"', b"a"), ('name="user"', b"b")], UserState.VALID),
        ([('name="user"', b"\xff")], UserState.BAD_FORM),
        ([('name="image"; filename="i"', b"\xff\x00"), ('name="user"', b"a")], UserState.VALID),
        ([("name=\"user\"; filename*=utf-8''a", b"alice")], UserState.ABSENT),
        ([("name=user", b"a")], UserState.VALID),
        ([('name="user"; filename=""', b""), ('name="user"', b"a")], UserState.ABSENT),
        ([('name="user[]"', b"a"), ('name="user"', b"a")], UserState.ABSENT),
        ([('name=" user"', b""), ('name="user"', b"a")], UserState.ABSENT),
        ([('name="user_id"', b""), ('name="user"', b"a")], UserState.VALID),
        ([('name="user"\r\nContent-Length: 1', b"a")], UserState.VALID),
        ([('name="user"\r\nContent-Type: text/plain; charset=ISO-8859-1', b"a")], UserState.VALID),
        ([('name="image"; filename="a\\"q.png"', b"x"), ('name="user"', b"a")], UserState.VALID),
        ([('name="image"; filename="a\\\\q.png"', b"x"), ('name="user"', b"a")], UserState.VALID),
        ([('name="image"; filename="a%22q.png"', b"x"), ('name="user"', b"a")], UserState.VALID),
        ([('name="image"; filename="a;b.png"', b"x"), ('name="user"', b"a")], UserState.VALID),
        ([('name="image"; filename="a=b.png"', b"x"), ('name="user"', b"a")], UserState.VALID),
        ([('name="a\\"b"', b"x"), ('name="user"', b"a")], UserState.VALID),
        ([('name="a%22b"', b"x"), ('name="user"', b"a")], UserState.VALID),
        ([('name="%75ser"', b""), ('name="user"', b"a")], UserState.ABSENT),
        ([('name="%22user%22"', b""), ('name="user"', b"a")], UserState.ABSENT),
        ([('name="image"; filename=a.png', b"x"), ("name=user", b"a")], UserState.VALID),
        ([('name="i"; filename="a"\r\nContent-Type: image/png', b""), ('name="user"', b"a")], 1),
        ([('name="prompt"', b"\xe9"), ('name="user"', b"a")], UserState.VALID),
        ([('name="user"\r\nContent-Type: text/plain; charset="UTF-8"', b"a")], UserState.VALID),
        ([('name="prompt"', b"a\r\n\r\nb"), ('name="user"', b"a")], UserState.VALID),
        ([('name="user"\r\nContent-Transfer-Encoding: 7bit', b"a")], UserState.VALID),
        ([('name="user"\r\nContent-Transfer-Encoding: 8BIT', b"a")], UserState.VALID),
        ([('name="user"\r\nContent-Transfer-Encoding: Binary', b"a")], UserState.VALID),
        ([('name="i"; filename="a"; filename*=UTF-8\'\'a', b"x"), ('name="user"', b"a")], 1),
    ],
)
def test_form_fields(parts: list[tuple[str, bytes]], expected: int) -> None:
    """File parts and file names never count, and of repeats the worst counts."""
    body = form(('name="x"', b"1"), *parts)
    assert state(body, FORM) == expected


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (form(('name="user"', b"a")), "multipart/form-data"),
        (form(('name="user"', b"a")), "multipart/form-data; boundary="),
        (form(('name="user"', b"a")), "multipart/form-data; boundary=C"),
        (form(('name="user"', b"a"))[:-6], FORM),
        (form(('name="user"', b"a")) + b"more", FORM),
        (form(('name="user"', b"a")) + form(('name="user"', b"")), FORM),
        (b"preamble\r\n" + form(('name="user"', b"a")), FORM),
        (GOOD, FORM),
        (b"", FORM),
        (b"--B\r\n\r\na\r\n--B--\r\n", FORM),
        (form(*[('name="x"', b"1")] * 2000), FORM),
        (form(('name="user"', b"a")), "multipart/form-data; boundary=B; boundary=B"),
        (form(('name="user"', b"a")), "multipart/form-data; boundary*=utf-8''B"),
        (form(('name="user"', b"a")).replace(b"--B\r\n", b"--B  \r\n"), FORM),
        (form(('name="user"', b"a")).replace(b"\r\n", b"\n"), FORM),
        (form(('name="x"; name="user"', b"a")), FORM),
        (b"--B\r\nContent-Disposition: form-data\r\n\r\na\r\n--B--\r\n", FORM),
        (form(("name*=utf-8''user", b"a")), FORM),
        (form(('name="user"; x="\\"; filename="a"', b"a")), FORM),
        (form(('name="user"; filename*0="a"', b"a")), FORM),
        (form(('name="user"\r\nContent-Disposition: form-data; name="x"', b"a")), FORM),
        (form(('name="user"\r\nContent-Transfer-Encoding: base64', b"ICAg")), FORM),
        (form(('name="user"\r\nContent-Type: text/plain; charset=utf-7', b"+ACA-")), FORM),
        (form(('name="user"\r\nContent-Type: multipart/mixed; boundary=C', b"a")), FORM),
        (form(('name="user"\r\nX: a\rb', b"a")), FORM),
        (form(('name="_charset_"', b"utf-16"), ('name="user"', b"a")), FORM),
        (form(('name="user"', b"a")).replace(b"Disposition:", b"Disposition :"), FORM),
        (form(('name="user"', b"a")), FORM + "; boundary*=utf-8''C"),
        (form(('name="user"', b"a")), "multipart/form-data; xboundary=C; boundary=B"),
        (form(('name="user"', b"a")), FORM + "; charset=utf-7"),
        (form(('name="x"', b'x\n--B\nContent-Disposition: form-data; name="user"\n\n ')), FORM),
        (form(('name="us\\er"', b"")), FORM),
        (form(('name="a\\b"', b"x"), ('name="user"', b"a")), FORM),
        (form(('filename="a"; name="user"', b"a")), FORM),
        (form(('name="user"\r\nContent-Type: application/octet-stream', b"a")), FORM),
        (form(('name="user"\r\nX-Other: a', b"a")), FORM),
        (form(('name="user"\r\nContent-Length: 0', b"a")), FORM),
        (form(('name="image"; filename="a;name=user"', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="image"; filename="a\\"; name=\\"user"', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="image"; filename="name=user"', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="image"; filename="a\\"', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="image"; filename="a;b=c"', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="image"; filename="a\\"=b"', b"x"), ('name="user"', b"a")), FORM),
        (b'--B\r\nContent-Disposition: form-data; name="user"\r\n--B--\r\n', FORM),
        (form(('name="user"', b"a")).replace(b"--B\r\n", b"--B  "), FORM),
        (form(('name="image";\tfilename="a"', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="image"; filename="a\tb"', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="image"; filename="a";', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="user\\""', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="us\\"er"', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="=?utf-8?q?user?="', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="i"; filename="=?utf-8?b?dXNlcg==?="', b"x"), ('name="user"', b"a")), FORM),
        (form(('name*0="us"; name*1="er"', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="x";\r\n name="user"', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="x"\r\nContent-Type: multipart/mixed; boundary=C', b"x")), FORM),
        (form(('name="x"; filename="a"\r\nContent-Type: Multipart/x', b"x")), FORM),
        (form(('name="x"; filename="a"\r\nContent-Type: message/rfc822', b"x")), FORM),
        (form(('name="x"; filename="a\x00b"', b"x")), FORM),
        (form(('name="mo\\"del"', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="model"\r\nX-Other: a', b"x"), ('name="user"', b"a")), FORM),
        (form(('name="model"', b"\xff"), ('name="user"', b"a")), FORM),
        (form(('name="user"', b"\x00alice")), FORM),
        (form(('name="user"', b"a")) + b"\r\n", FORM),
        (form(('name="user"', b"a")).replace(b"Disposition: ", b"Disposition:"), FORM),
        (form(('name="user"', b"a")).replace(b"Disposition: ", b"Disposition:  "), FORM),
        (form(('name="user"', b"a")).replace(b"Disposition: ", b"Disposition:\t"), FORM),
        (form(('name="x"', b"b"), ('name="user"', b"a")).replace(b'"x"', b'"\xe9"'), FORM),
        (form(('name="x"\r\nContent-Length: 5', b"a"), ('name="user"', b"a")), FORM),
        (form(('name="user"', b"a")).replace(b"--B", b"--B-"), FORM + "-"),
        (form(('name="user"', b"a")).replace(b"--B", b"----"), FORM.replace("=B", "=--")),
        (form(('name="user"', b"a")).replace(b"--B", b"--B,C"), FORM.replace("B", '"B,C"')),
        (form(('name="user"', b"a")).replace(b"--B", b"--B C"), FORM.replace("B", '"B C"')),
        (form(('name="user"', b"a")), FORM + ";"),
        (form(('name="user"', b"a")), FORM.replace("; ", ";\t")),
        (form(('name="user"', b"a")), FORM.replace("=B", '="\\B"')),
        (form(('name="user"', b"a")), FORM.replace("form-data", "form-data x")),
        (form(('name="user"', b"a")), FORM + ", application/json"),
        (form(('name="user"', b"a")), FORM + '; x="boundary=C"'),
        (form(('name="user"', b"a")), FORM + "; charset=us-ascii"),
        (form(('name="user"', b"a")), FORM.replace("form-data", "mixed")),
        (form(('name="user"', b"a")), "multipart/form-data/x; boundary=B"),
        (form(('name="user"', b"a")), FORM + "; x=" + "a" * 2000),
        (form((f'name="x"; filename="{"a" * 10_000}"', b"a")), FORM),
    ],
)
def test_bad_forms(body: bytes, kind: str) -> None:
    """A form that two servers could read differently is rejected."""
    assert state(body, kind) is UserState.BAD_FORM


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [(EDITS, UserState.BAD_FORM), (None, UserState.BAD_FORM), (CHAT, UserState.NOT_JSON)],
    ids=["a form", "unknown", "JSON"],
)
def test_content_types_that_differ(endpoint: Endpoint | None, expected: UserState) -> None:
    """A body with several types is unreadable, whatever it is: the upstream may follow either."""
    for body in (GOOD, form(('name="user"', b"a")), b""):
        assert read_body(body, None, "", endpoint).user.state is expected


def test_a_form_is_no_json() -> None:
    """Where the endpoint takes no form, a form is a body that is not JSON."""
    body = form(('name="user"', b"a"))
    assert read_body(body, FORM, "", CHAT).user.state is UserState.NOT_JSON


def test_long_values_are_cut() -> None:
    """Only the first 1,024 characters of a user are kept."""
    attributes = read(json.dumps({"user": "a" * 5000}).encode())
    assert attributes.user.state is UserState.VALID
    assert attributes.user.value == "a" * 1024
