"""Bodies that readers might read differently: well-formed ones, taken apart and put together anew.

All of them come from one seeded random generator, so that a run can be repeated.
"""

import gzip
import random
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import brotli

from policyd.descriptor.content_encoding import zstd


class Case(NamedTuple):
    """A body as a client sends it."""

    kind: str
    """json or form."""
    body: bytes
    content_type: str
    content_encoding: str = ""


Make = Callable[[random.Random], Case]

_KEYS = (
    *(
        '"user"',
        '"user"',
        '"user"',
        '"User"',
        '"USER"',
        '"\\u0075ser"',
        '"u\\u017fer"',
        '"u\u017fer"',
    ),
    *('"model"', '"messages"', '"metadata"', '"user "', '"us\\u0000er"', '"\\"user"', '"x"', '""'),
    *('"safety_identifier"', '"us\u0435r"', '"user\\u0000"', '"\\ud800"', '"__proto__"'),
)
_VALUES = (
    *('"alice"', '"alice"', '"bob"', '"Zo\u00eb"', '"Zo\\u00eb"', '"\\ud83d\\ude00"', '"a\\"b"'),
    *('""', '" "', '"\\u0000"', '"\\u200b"', '"\u3000"', '"\\ud800"', '"a\\u0000b"', '"\\/"'),
    *("null", "0", "-0", "0.0", "1e400", "12345678901234567890", "1", "false", "true", "[]", "{}"),
    *('["a"]', '{"user":"b"}', '[{"user":""}]', '{"a":{"user":null}}', "NaN", "01", '"\x7f"'),
    *('"&model=m&prompt=p&"', '";model=m;"', '"a&b=2"', '"--B\\r\\n"', '"[{\\"}]"', '"\\\\"'),
)
_GAPS = ("",) * 12 + (" ", "\n", "\t", "\r\n", "\u00a0", "\ufeff", "\x0b", "/**/", "//\n", "\0")
_AROUND = ("",) * 20 + ("\ufeff", " ", "\0", "x", "{}", '{"user":"b"}', "[]", "\x1e", ",", ";")
_JSON_TYPES = (
    *("application/json",) * 8,
    *("", "text/plain;charset=UTF-8", "application/json; charset=utf-8", "application/json;"),
    *('application/json; charset="utf-8"', "application/json; charset=utf-7", "text/plain"),
    *(
        "application/json; charset=utf-16",
        "application/json; charset=us-ascii",
        "application/x-json",
    ),
    *("application/json; charset*=utf-8''utf-7", "application/json; charset=iso-8859-1", "a/b"),
    *("application/json; charset=utf-8; charset=utf-7", 'application/json; x="; charset=utf-7"'),
    *(
        "application/json;charset=utf8",
        "application/json, text/plain",
        "application/json charset=u",
    ),
    *("application/x-www-form-urlencoded",) * 4,
    *(
        "application/x-www-form-urlencoded x",
        "multipart/form-data; boundary=B",
        "application/jsonx",
    ),
    *(
        "application/json; charset=windows-1252",
        "application/json; charset=utf-8 ",
        "a/b; c=d; e=f",
    ),
)
_TOKENS = (
    *(b'"', b"'", b"\\", b"{", b"}", b"[", b"]", b",", b":", b";", b"=", b"&", b" ", b"\t", b"\r"),
    *(b"\n", b"\r\n", b"\0", b"\xff", b"\xc5\xbf", b"\xef\xbb\xbf", b"--", b"--B", b"user", b"*"),
    *(
        b'"user":"a"',
        b'"user":""',
        b"name=",
        b'name="user"',
        b"filename=",
        b"\r\n\r\n",
        b"%75",
        b"=?",
    ),
)


def json_case(draw: random.Random) -> Case:
    """A JSON body of members that matter."""
    is_odd = draw.random() < 0.3

    def gap() -> str:
        return draw.choice(_GAPS) if is_odd else draw.choice(("", "", " "))

    members = [
        f"{gap()}{draw.choice(_KEYS)}{gap()}:{gap()}{draw.choice(_VALUES)}{gap()}"
        for _ in range(draw.randrange(1, 6))
    ]
    if draw.random() < 0.6:
        members.insert(draw.randrange(len(members) + 1), '"user":"alice"')
    text = "{" + ",".join(members) + "}"
    if is_odd:
        text = draw.choice(_AROUND) + text + draw.choice(_AROUND)
    body = _mutated(draw, text.encode("utf-8", "surrogatepass"), 0.25)
    return Case("json", body, draw.choice(_JSON_TYPES))


_NAMES = (
    *('name="user"', 'name="user"', "name=user", 'name="prompt"', 'name="image"', 'name="User"'),
    *(
        'name="user[]"',
        'name=" user"',
        'name="a\\"b"',
        'name="a%22b"',
        'name="%75ser"',
        "name*=user",
    ),
    *('name="us\\er"', 'name="user\\""', "name*0=us; name*1=er", 'name="=?utf-8?q?user?="'),
    *('NAME="user"', 'name = "user"', 'name="x"; name="user"', 'name="user', 'name="a;name=user"'),
)
_FILES = (
    *("",) * 10,
    *('; filename="a.png"', '; filename="a\\"q.png"', '; filename="a;name=user"', "; filename=a"),
    *(
        '; filename=""',
        "; filename*=utf-8''a",
        ';\tfilename="a"',
        '; filename="a\\"; name=\\"user"',
    ),
    *('; filename="C:\\a.png"', '; filename="a', ';filename="a"', '; filename="name=user"', ";"),
    *('; filename="a,b=c"', '; x="y"', "; charset=utf-7", '; filename="a\\\\"', '; filename="%22"'),
)
_HEADS = (
    *("",) * 10,
    *("\r\nContent-Type: text/plain", "\r\nContent-Type: text/plain; charset=utf-8", "\r\nX-Y: z"),
    *(
        "\r\nContent-Type: text/plain; charset=utf-16",
        "\r\nContent-Type: multipart/mixed; boundary=C",
    ),
    *(
        "\r\nContent-Transfer-Encoding: base64",
        "\r\nContent-Type: image/png",
        "\r\nContent-Length: 5",
    ),
    *('\r\nContent-Disposition: form-data; name="x"', '\r\n name="user"', "\r\nContent-Type: a/b"),
    *("\r\nContent-Transfer-Encoding: 8bit", "\r\nContent-Type: message/rfc822", "\n"),
)
_TEXTS = (
    *(
        b"alice",
        b"alice",
        b"bob",
        b"",
        b" ",
        b"\xc3\xa9",
        b"\xff",
        b"\0alice",
        b"al\0ice",
        b"a\r\nb",
    ),
    *(
        b'x\n--B\nContent-Disposition: form-data; name="user"\n\n ',
        b"--B",
        b"\r\n",
        b"ICAg",
        b"a\n",
    ),
)
_FORM_TYPES = (
    *("multipart/form-data; boundary={}",) * 10,
    *('multipart/form-data; boundary="{}"', "Multipart/Form-Data; Boundary={}", "a/b; boundary={}"),
    *(
        "multipart/form-data;boundary={}",
        "multipart/form-data;\tboundary={}",
        "multipart/form-data",
    ),
    *("multipart/form-data; boundary={}; charset=utf-8", "multipart/form-data; boundary={},x"),
    *("multipart/form-data; charset=utf-16; boundary={}", "multipart/form-data; boundary={};"),
    *("multipart/form-data x; boundary={}", "multipart/form-data; boundary={}; boundary=C"),
    *("multipart/mixed; boundary={}", "multipart/form-data; boundary*=utf-8''{}"),
)
_BOUNDARIES = ("B",) * 6 + (
    "----WebKitFormBoundaryAb1",
    "==a:b?==",
    "a,b",
    "a b",
    "B-",
    "--",
    "'B'",
)


def form_case(draw: random.Random) -> Case:
    """A form of parts that matter."""
    boundary = draw.choice(_BOUNDARIES)
    end = "\n" if draw.random() < 0.03 else "\r\n"
    is_odd = draw.random() < 0.6
    parts = [_part(draw, is_odd) for _ in range(draw.randrange(0, 4))]
    if draw.random() < 0.7:
        user = b'Content-Disposition: form-data; name="user"\r\n\r\nalice'
        parts.insert(draw.randrange(len(parts) + 1), user)
    body = b"".join(f"--{boundary}{end}".encode() + part + end.encode() for part in parts)
    body += f"--{boundary}--".encode() + draw.choice((b"\r\n", b"", b"\r\n\r\n"))
    if draw.random() < 0.1:
        body = (
            draw.choice((b"\r\n", b"preamble\r\n", b"\n")) + body + draw.choice((b"", b"epilogue"))
        )
    kind = draw.choice(_FORM_TYPES if is_odd else _FORM_TYPES[:11]).format(boundary)
    return Case("form", _mutated(draw, body, 0.25), kind)


def _part(draw: random.Random, is_odd: bool) -> bytes:
    few = 2 if is_odd else 0
    name = draw.choice(_NAMES if draw.random() < 0.5 else _NAMES[:5])
    file = draw.choice(_FILES) if few else draw.choice(_FILES[:12])
    head = draw.choice(_HEADS) if few else ""
    disposition = f"Content-Disposition: form-data; {name}{file}{head}\r\n\r\n"
    return disposition.encode() + draw.choice(_TEXTS)


def coded_case(draw: random.Random) -> Case:
    """A body with a user, coded so that a reader might read some of it without decoding it."""
    plain = draw.choice((json_case, form_case))(draw)
    coding, code = draw.choice(_CODERS)
    body = code(draw, plain)
    if draw.random() < 0.1:
        coding, body = f"{coding}, gzip", gzip.compress(body, draw.choice((0, 9)), mtime=0)
    return plain._replace(body=_mutated(draw, body, 0.1), content_encoding=coding)


def _other(plain: Case) -> bytes:
    """Another body of the same kind, without a user."""
    if plain.kind == "json":
        return b'{"model":"m","messages":[]}'
    boundary = plain.content_type.rpartition("oundary=")[2].strip('"').encode() or b"B"
    head = b'\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nhi\r\n'
    return b"\r\n--" + boundary + head + b"--" + boundary + b"--\r\n"


def _gzip_extra(_: random.Random, plain: Case) -> bytes:
    other = _other(plain)
    rest = gzip.compress(plain.body, mtime=0)[10:]
    return b"\x1f\x8b\x08\x04" + bytes(6) + len(other).to_bytes(2, "little") + other + rest


def _stored(draw: random.Random, plain: Case) -> bytes:
    """Bare deflate of one stored piece, its padding and length chosen to look like text."""
    size = len(plain.body).to_bytes(2, "little")
    begin = draw.choice((b"\x01", b"{", b" ", b"\n"))
    return begin + size + bytes(byte ^ 0xFF for byte in size) + plain.body


def _bare(_: random.Random, plain: Case) -> bytes:
    coder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return coder.compress(plain.body) + coder.flush()


def _brotli_raw(_: random.Random, plain: Case) -> bytes:
    """One uncompressed piece, whose length makes its head a brace."""
    return b"\r{\x80" + plain.body.ljust(247)[:247] + b"\x03"


def _split(compress: Callable[[bytes], bytes]) -> Callable[[random.Random, Case], bytes]:
    """Two streams in a row."""

    def code(draw: random.Random, plain: Case) -> bytes:
        at = draw.randrange(len(plain.body) + 1)
        return compress(plain.body[:at]) + compress(plain.body[at:])

    return code


def _skippable(_: random.Random, plain: Case) -> bytes:
    other = _other(plain)
    return (
        b"\x50\x2a\x4d\x18" + len(other).to_bytes(4, "little") + other + zstd.compress(plain.body)
    )


_CODERS: tuple[tuple[str, Callable[[random.Random, Case], bytes]], ...] = (
    ("gzip", lambda draw, plain: gzip.compress(plain.body, draw.choice((0, 1, 9)), mtime=0)),
    ("x-gzip", lambda _, plain: gzip.compress(plain.body, mtime=0)),
    ("deflate", lambda draw, plain: zlib.compress(plain.body, draw.choice((0, 9)))),
    ("br", lambda draw, plain: brotli.compress(plain.body, quality=draw.choice((0, 11)))),
    ("zstd", lambda _, plain: zstd.compress(plain.body)),
    ("gzip", _gzip_extra),
    ("gzip", _split(gzip.compress)),
    ("deflate", _split(zlib.compress)),
    ("zstd", _split(zstd.compress)),
    ("zstd", _skippable),
    ("deflate", _bare),
    ("deflate", _stored),
    ("br", _brotli_raw),
    ("identity", lambda _, plain: plain.body),
    ("", lambda _, plain: plain.body),
)


def _mutated(draw: random.Random, body: bytes, chance: float) -> bytes:
    """`body` with a few bytes removed, inserted, repeated or changed, by `chance`."""
    while draw.random() < chance:
        at = draw.randrange(len(body) + 1)
        to = min(len(body), at + draw.randrange(1, 12))
        what = draw.randrange(4)
        if what == 0:
            body = body[:at] + body[to:]
        elif what == 1:
            body = body[:at] + draw.choice(_TOKENS) + body[at:]
        elif what == 2:
            body = body[:to] + body[at:]
        else:
            body = body[:at] + bytes([draw.randrange(256)]) + body[at + 1 :]
    return body


MAKERS: dict[str, Make] = {"JSON": json_case, "forms": form_case, "coded": coded_case}


def cases(make: Make, seed: int, count: int) -> Iterator[Case]:
    """`count` bodies, the same for one seed."""
    draw = random.Random(seed)
    return (make(draw) for _ in range(count))
