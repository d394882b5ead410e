"""The characters of a prompt in the shapes that most clients send, counted by the JSON library.

The library is given these shapes in full: every name in them is one of the API's, and each member
occurs once. It then gives the texts alone, several times as quickly as prompt.py finds them. Any
other shape is left to prompt.py, which finds text in all of them: both count the same.
"""

import re
from typing import Literal

import msgspec

_MAX_PROMPT = 32 * 2**20
"""Bytes of a prompt up to which it is read so, to save memory: a text takes up to four bytes a
character."""
_FIRST = re.compile(rb'\[[ \t\r\n]*+(["{])')
_ESCAPED_MARK = re.compile(rb"\\u00(?:[567]|3[aA])")
"""A name with an escaped letter is not spelled as the API's is; an escaped colon in a text would be
counted in place of the colon of a repeated member."""
_NUMBERS = b"0123456789 \t\r\n"


class _Shape(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """An object that has these members, and no others."""


class _Text(_Shape, tag_field="type", tag="text"):
    text: str


class _InputText(_Shape, tag_field="type", tag="input_text"):
    text: str


class _OutputText(_Shape, tag_field="type", tag="output_text"):
    text: str


class _Url(_Shape):
    url: msgspec.Raw
    detail: Literal["auto", "low", "high"] | msgspec.UnsetType = msgspec.UNSET


class _Image(_Shape, tag_field="type", tag="image_url"):
    image_url: _Url


_Part = _Text | _InputText | _OutputText | _Image


class _Message(_Shape):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]


_texts_decoder = msgspec.json.Decoder(list[str])
_messages_decoder = msgspec.json.Decoder(list[_Message])
_string_decoder = msgspec.json.Decoder(str)


def characters(raw: bytes) -> int | None:
    """The code points of all text in a well-formed JSON value in which no numbers count; None where
    it has another shape."""
    if len(raw) > _MAX_PROMPT:
        return None
    try:
        if raw[0] == ord('"'):
            return len(_string_decoder.decode(raw))
        first = _FIRST.match(raw)
        if first is None:
            return None
        if first[1] == b'"':
            return sum(map(len, _texts_decoder.decode(raw)))
        return _of_messages(raw, _messages_decoder.decode(raw))
    except msgspec.DecodeError:  # Another shape, or half of a surrogate pair.
        return None


def tokens(raw: bytes) -> int | None:
    """How many numbers there are in a well-formed JSON array of whole numbers, or of such arrays;
    None where it holds anything else."""
    if b'"' in raw:
        return None
    marks = raw.translate(None, _NUMBERS)
    # What looks like an empty array may hold one number.
    if not marks.startswith(b"[") or b"[]" in marks or marks.translate(None, b"[],"):
        return None
    # Arrays have one element more than commas, and all arrays but the outermost are elements.
    return marks.count(b",") + 1


def _of_messages(raw: bytes, messages: list[_Message]) -> int | None:
    contents = [message.content for message in messages]
    texts = [content for content in contents if type(content) is str]
    parts = [part for content in contents if type(content) is list for part in content]
    texts += [part.text for part in parts if not isinstance(part, _Image)]
    urls = [part.image_url for part in parts if isinstance(part, _Image)]
    if any(memoryview(url.url)[0] != ord('"') for url in urls):
        return None
    text = "".join(texts)
    members = 2 * (len(messages) + len(parts)) + len(urls)
    members += sum(url.detail is not msgspec.UNSET for url in urls)
    # Every member has a colon. Where there are more than the library has members, it passed some
    # over.
    colons = members + _colons(text.encode() if text.isascii() else text)
    colons += sum(_colons(bytes(url.url)) for url in urls)
    if _colons(raw) != colons or (b"\\" in raw and _ESCAPED_MARK.search(raw)):
        return None
    return len(text)


def _colons(text: bytes | str) -> int:
    # In bytes, removing what is rare is quicker than counting it.
    if isinstance(text, str):
        return text.count(":")
    return len(text) - len(text.replace(b":", b""))
