"""How many characters the prompt of a request has, counted in the JSON that stands in its body.

What counts is the text: every string under the members that hold a prompt, in whatever shape, even
under names that are unknown here. What does not count is recognised by the name before it: words of
the API's own, such as a role, and the data and addresses of images, audio and files. A word that is
longer than any of the API's is text. Such a name is recognised only in its exact spelling.

Nothing is decoded and nothing is built: strings are cut out of the JSON, and their bytes counted.
"""

import re
from collections.abc import Iterator

from policyd.descriptor import usual_prompt

_MAX_WORD = 128
"""Characters of a structural word. Those of the API, its IDs among them, are shorter."""
_MIN_IMAGE = 1024
"""A `result` of at least this many characters of base64 is an image's data, not text."""
_AT_ONCE = 4 * 2**20
"""Bytes that are read at once."""
_CHARACTERS_OF_TOKEN = 4
"""OpenAI's rule of thumb."""

# The names before strings that are no text. The first are those of the API's own words and IDs.
_WORDS = (
    b"type|role|id|name|status|format|detail|phase|model|media_type|filename|server_label|call_id|"
    b"tool_call_id|item_id|response_id|file_id|container_id|approval_request_id"
)
_DATA = b"url|image_url|file_url|data|file_data|encrypted_content"
_COLON = rb'"[ \t\r\n]*+:[ \t\r\n]*+'
# What stands in a string. It holds no two backslashes in a row: _without_backslashes() has gone
# before.
_INNER = rb'[^"]*+(?:(?<=\\)"[^"]*+)*+'
_TEXT = re.compile(
    rb'"(?:(?:%(words)b)%(colon)b"[^"]{0,%(longest)d}+(?<!\\)"'
    rb'|(?:%(data)b)%(colon)b"%(inner)b"'
    rb'|result%(colon)b"[0-9A-Za-z+/]{%(least)d,}+={0,2}"'
    rb'|(?:%(inner)b%(colon)b")?+(%(inner)b)"(?![ \t\r\n]*+:)'
    rb'|%(inner)b"?+)'
    % {
        b"words": _WORDS,
        b"data": _DATA,
        b"inner": _INNER,
        b"colon": _COLON,
        b"longest": _MAX_WORD,
        b"least": _MIN_IMAGE,
    }
)
"""A string, with the name before it. Its text is the group: empty for what does not count."""
_STRINGS = re.compile(
    rb'(?:[^"]*+"%(inner)b"(?:[ \t\r\n]*+:(?:[ \t\r\n]*+"%(inner)b")?+)?+){1,4096}+'
    % {b"inner": _INNER}
)
"""Strings in a row; none ends between a name and its value."""
# Looking whether there is one is quicker than counting or replacing what is not there.
_TWO_BACKSLASHES = re.compile(rb"\\\\")
_UNICODE = re.compile(rb"\\u")
_SURROGATE_PAIR = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]")
_CONTINUATION = bytes(range(0x80, 0xC0))
_NO_MARKS = bytes(set(range(256)) - set(b'"[,:-0123456789'))
_NUMBERS = bytes.maketrans(b"-0123456789", b"11111111111")


def characters(raw: memoryview, with_tokens: bool = False) -> int:
    """The code points of all text in a well-formed JSON value of UTF-8.

    With `with_tokens`, numbers that are elements of arrays count, too, as the tokens that they are.
    """
    text = bytes(raw)
    if with_tokens and (tokens := usual_prompt.tokens(text)) is not None:
        return _CHARACTERS_OF_TOKEN * tokens
    count = usual_prompt.characters(text)
    return in_any_shape(text, with_tokens) if count is None else count


def in_any_shape(text: bytes, with_tokens: bool = False) -> int:
    """The same, whatever the shape of the value: the long way."""
    json = _without_backslashes(text)
    if len(json) <= _AT_ONCE:
        count = _length(_TEXT.findall(json))
    else:
        count = sum(_length(_TEXT.findall(json, *span)) for span in _spans(json))
    return count + _CHARACTERS_OF_TOKEN * _tokens(json) if with_tokens else count


def _spans(json: bytes) -> Iterator[tuple[int, int]]:
    """Where the strings of JSON stand, a few thousand at a time: other threads get their turn in
    between, and no more than those are cut out at once."""
    position = 0
    while match := _STRINGS.match(json, position):
        yield match.span()
        position = match.end()


def _length(texts: list[bytes]) -> int:
    # With a quotation mark between them, the halves of two surrogate pairs are no pair.
    text = b'"'.join(texts)
    count = code_points(text) - max(len(texts) - 1, 0)
    return count - _escaped(text) if b"\\" in text else count


def _tokens(json: bytes) -> int:
    """How many numbers are elements of arrays in JSON without escaped backslashes."""
    plain = json.replace(rb"\"", b"") if b"\\" in json else json
    # Most strings hold none of these marks, so that their two quotation marks are adjacent. Without
    # such pairs, what lies between the others is inside a string, or outside, as before.
    marks = plain.translate(_NUMBERS, _NO_MARKS).replace(b'""', b"")
    structure = b"".join(marks.split(b'"')[::2])
    return structure.count(b"[1") + structure.count(b",1")


def code_points(text: bytes) -> int:
    """The code points of a text in UTF-8. Total: of other bytes, no fewer than any reader finds."""
    return len(text) if text.isascii() else len(text.translate(None, _CONTINUATION))


def _without_backslashes(text: bytes) -> bytes:
    """JSON in which every escaped backslash is an x."""
    if b"\\" in text and _TWO_BACKSLASHES.search(text):
        return text.replace(rb"\\", b"x")
    return text


def _escaped(text: bytes) -> int:
    """By how many the code points of JSON exceed the characters that it stands for: each escape is
    one character, and so are the two escapes of a surrogate pair."""
    count = text.count(b"\\")
    if _UNICODE.search(text):
        count += 4 * text.count(rb"\u") + len(_SURROGATE_PAIR.findall(text))
    return count
