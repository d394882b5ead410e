"""The readers in Python: each takes a body and its Content-Type, and returns the values of `user`.

A value that is no string is None. A reader that rejects the body raises any exception.
"""

import asyncio
import io
import json
import sqlite3
from collections.abc import Callable, Mapping
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP, compat32
from typing import Any
from urllib.parse import parse_qs

import bottle
import django.conf
import falcon.media.multipart
import multipart
import orjson
import python_multipart
import rapidjson
import sanic.request.form
import simdjson
import simplejson
import starlette.datastructures
import starlette.formparsers
import tornado.httputil
import ujson
import webob
import werkzeug.formparser
import werkzeug.http
from aiohttp import helpers as aiohttp_helpers
from django.core.files.uploadhandler import MemoryFileUploadHandler
from django.http.multipartparser import MultiPartParser as DjangoParser
from streaming_form_data import StreamingFormDataParser
from streaming_form_data.targets import BaseTarget

django.conf.settings.configure(DEFAULT_CHARSET="utf-8")

Users = list[str | None]
Reader = Callable[[bytes, str], Users]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


# --- JSON --------------------------------------------------------------------------------------


def _json(load: Callable[[bytes], Any]) -> Reader:
    def read(body: bytes, _: str) -> Users:
        found = load(body)
        if not isinstance(found, Mapping):
            raise TypeError("no object")
        return [_text(found["user"])] if "user" in found else []

    return read


def _in_charset(charset_of: Callable[[str], str | None]) -> Reader:
    """Decode the body in the charset of its Content-Type, as some frameworks do."""

    def read(body: bytes, content_type: str) -> Users:
        text = body.decode(charset_of(content_type) or "utf-8", "ignore")
        return _json(json.loads)(text, "")  # type: ignore[arg-type]  # it takes text, too

    return read


def _by_email(content_type: str) -> str | None:
    message = Message()
    message["content-type"] = content_type
    return message.get_content_charset()


def _by_werkzeug(content_type: str) -> str | None:
    return werkzeug.http.parse_options_header(content_type)[1].get("charset")


def _by_aiohttp(content_type: str) -> str | None:
    return aiohttp_helpers.parse_mimetype(content_type).parameters.get("charset")


def _by_django(content_type: str) -> str | None:
    from django.utils.http import parse_header_parameters  # after its settings

    return parse_header_parameters(content_type)[1].get("charset")


def _by_webob(content_type: str) -> str | None:
    return webob.Request.blank("/", content_type=content_type).charset


def _sqlite(body: bytes, _: str) -> Users:
    (kind, value), *_rest = _DATABASE.execute(
        "select json_type(t, '$.user'), json_extract(t, '$.user') from (select ? as t)",
        (body.decode(),),
    )
    return [] if kind is None else [value if kind == "text" else None]


_DATABASE = sqlite3.connect(":memory:")

JSON: dict[str, Reader] = {
    "json": _json(json.loads),
    "orjson": _json(orjson.loads),
    "simplejson": _json(simplejson.loads),
    "ujson": _json(ujson.loads),
    "rapidjson": _json(rapidjson.loads),
    "rapidjson, lenient": _json(
        lambda body: rapidjson.loads(
            body, parse_mode=rapidjson.PM_COMMENTS | rapidjson.PM_TRAILING_COMMAS
        )
    ),
    "simdjson": _json(lambda body: simdjson.Parser().parse(body, True)),
    "sqlite": _sqlite,
    "charset by email": _in_charset(_by_email),
    "charset by werkzeug": _in_charset(_by_werkzeug),
    "charset by aiohttp": _in_charset(_by_aiohttp),
    "charset by django": _in_charset(_by_django),
    "charset by webob": _in_charset(_by_webob),
}


# --- forms -------------------------------------------------------------------------------------


def _environ(body: bytes, content_type: str) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST",
        "CONTENT_TYPE": content_type,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        "SERVER_NAME": "x",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "PATH_INFO": "/",
    }


def _werkzeug(body: bytes, content_type: str) -> Users:
    parser = werkzeug.formparser.FormDataParser(silent=False)
    kind, options = werkzeug.http.parse_options_header(content_type)
    _, form, _ = parser.parse(io.BytesIO(body), kind, len(body), options)
    return [*form.getlist("user")]


def _starlette(body: bytes, content_type: str) -> Users:
    async def chunks() -> Any:
        yield body

    headers = starlette.datastructures.Headers({"content-type": content_type})
    parser = starlette.formparsers.MultiPartParser(headers, chunks())
    form = asyncio.run(parser.parse())
    # A file is no text field.
    return [value for value in form.getlist("user") if isinstance(value, str)]


def _python_multipart(body: bytes, content_type: str) -> Users:
    users: Users = []

    def on_field(field: Any) -> None:
        if field.field_name == b"user":
            users.append((field.value or b"").decode())

    parser = python_multipart.create_form_parser({"Content-Type": content_type}, on_field, None)
    parser.write(body)
    parser.finalize()
    return users


def _django(body: bytes, content_type: str) -> Users:
    meta = {"CONTENT_TYPE": content_type, "CONTENT_LENGTH": str(len(body))}
    post, _ = DjangoParser(meta, io.BytesIO(body), [MemoryFileUploadHandler()]).parse()
    return [*post.getlist("user")]


def _multipart(body: bytes, content_type: str) -> Users:
    form, _ = multipart.parse_form_data(_environ(body, content_type), strict=True)
    return [*form.getall("user")]


def _multipart_lenient(body: bytes, content_type: str) -> Users:
    form, _ = multipart.parse_form_data(_environ(body, content_type))
    return [*form.getall("user")]


def _bottle(body: bytes, content_type: str) -> Users:
    return [*bottle.BaseRequest(_environ(body, content_type)).forms.getall("user")]


def _webob(body: bytes, content_type: str) -> Users:
    found = webob.Request(_environ(body, content_type)).POST.getall("user")
    return [value for value in found if isinstance(value, str)]


def _tornado(body: bytes, content_type: str) -> Users:
    arguments: dict[str, list[bytes]] = {}
    tornado.httputil.parse_body_arguments(content_type, body, arguments, {})
    return [value.decode() for value in arguments.get("user", [])]


def _sanic(body: bytes, content_type: str) -> Users:
    _, options = sanic.headers.parse_content_header(content_type)
    fields, _ = sanic.request.form.parse_multipart_form(body, options["boundary"].encode())
    return [*fields.getlist("user", [])]


def _falcon(body: bytes, content_type: str) -> Users:
    handler = falcon.media.MultipartFormHandler()
    form = handler.deserialize(io.BytesIO(body), content_type, len(body))
    return [part.text for part in form if part.name == "user" and part.filename is None]


class _Values(BaseTarget):  # type: ignore[misc]  # it has no types
    def __init__(self) -> None:
        super().__init__()
        self.values: list[bytes] = []

    def on_start(self) -> None:
        self.values.append(b"")

    def on_data_received(self, chunk: bytes) -> None:
        self.values[-1] += chunk


def _streaming(body: bytes, content_type: str) -> Users:
    target = _Values()
    parser = StreamingFormDataParser({"Content-Type": content_type})
    parser.register("user", target)
    parser.data_received(body)
    return [value.decode() for value in target.values]


def _email(policy: Any) -> Reader:
    def read(body: bytes, content_type: str) -> Users:
        head = f"Content-Type: {content_type}\r\n\r\n".encode()
        message = BytesParser(policy=policy).parsebytes(head + body)
        if not message.is_multipart():
            raise ValueError("no form")
        users: Users = []
        for part in message.get_payload():
            name = part.get_param("name", header="content-disposition")
            if name == "user" and part.get_filename() is None:
                users.append(part.get_payload(decode=True).decode())
        return users

    return read


FORM: dict[str, Reader] = {
    "werkzeug": _werkzeug,
    "starlette": _starlette,
    "python-multipart": _python_multipart,
    "django": _django,
    "multipart": _multipart,
    "multipart, lenient": _multipart_lenient,
    "bottle": _bottle,
    "webob": _webob,
    "tornado": _tornado,
    "sanic": _sanic,
    "falcon": _falcon,
    "streaming-form-data": _streaming,
    "email": _email(HTTP),
    "email, compat32": _email(compat32),
}


# --- urlencoded: which of the endpoint's required fields are there -----------------------------

_ASKED_FOR = ("model", "messages", "prompt", "input", "image")


def _urlencoded(separator: str) -> Reader:
    def read(body: bytes, _: str) -> Users:
        fields = parse_qs(body.decode("latin-1"), separator=separator, keep_blank_values=True)
        return [name for name in fields if name.strip().lower() in _ASKED_FOR]

    return read


URLENCODED: dict[str, Reader] = {"parse_qs": _urlencoded("&"), "parse_qs ;": _urlencoded(";")}

KINDS = {"json": JSON, "form": FORM, "urlencoded": URLENCODED}


def read(kind: str, body: bytes, content_type: str) -> dict[str, Users | None]:
    """What each reader reads in a body; None where it rejects it."""
    return {name: _attempt(reader, body, content_type) for name, reader in KINDS[kind].items()}


def _attempt(reader: Reader, body: bytes, content_type: str) -> Users | None:
    try:
        return reader(body, content_type)
    except Exception:  # noqa: BLE001  # Refusing is all the same, however it is done.
        return None
