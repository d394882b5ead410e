"""How many characters the prompt of a request has, counted in the JSON that stands in its body.

What counts is the text: every string under the members that hold a prompt, in whatever shape, and
so under names that no reader here knows, too. What does not count is known by the name before it:
words of the API's own, such as a role, and the data and addresses of images, audio and files. A
word that is longer than any of the API's is text. Such a name counts only in its very spelling.

Nothing is decoded and nothing is built: strings are cut out of the JSON, and their bytes counted.
"""

import re

_MAX_WORD = 128
"""Characters of a structural word. Those of the API, its IDs among them, are shorter."""
_MIN_IMAGE = 1024
"""Characters of base64 from which a result is an image's data, and no text."""
_CHARACTERS_OF_TOKEN = 4
"""OpenAI's rule of thumb."""

# By the name before it, what is no text. The first are words of the API's own, and its IDs.
_WORDS = (
    b"type|role|id|name|status|format|detail|phase|model|media_type|filename|server_label|call_id|"
    b"tool_call_id|item_id|response_id|file_id|container_id|approval_request_id"
)
_DATA = b"url|image_url|file_url|data|file_data|encrypted_content"
_COLON = rb'"[ \t\r\n]*+:[ \t\r\n]*+'
_TEXT = re.compile(
    rb'"(?:(?:%(words)b)%(colon)b"[^"]{0,%(longest)d}+"'
    rb'|(?:%(data)b)%(colon)b"[^"]*+"'
    rb'|result%(colon)b"[0-9A-Za-z+/]{%(least)d,}+={0,2}"'
    rb'|(?:[^"]*+%(colon)b")?+([^"]*+)"(?![ \t\r\n]*+:)'
    rb'|[^"]*+")'
    % {
        b"words": _WORDS,
        b"data": _DATA,
        b"colon": _COLON,
        b"longest": _MAX_WORD,
        b"least": _MIN_IMAGE,
    }
)
"""A string, with the name before it. Its text is the group: empty for what does not count."""
_STRING = re.compile(rb'"[^"]*+"')
_SURROGATE_PAIR = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]")
_CONTINUATION = bytes(range(0x80, 0xC0))
_BLANKS = b" \t\r\n"
_NUMBERS = bytes.maketrans(b"-0123456789", b"11111111111")


def characters(raw: memoryview) -> int:
    """The code points of all text in a well-formed JSON value of UTF-8."""
    texts = _TEXT.findall(_without_quotes(raw))
    # With a quotation mark between them, the halves of two surrogate pairs are no pair.
    return _length(b'"'.join(texts)) - max(len(texts) - 1, 0)


def characters_of_tokens(raw: memoryview) -> int:
    """What the tokens in a JSON value stand for: the numbers that are elements of its arrays."""
    structure = _STRING.sub(b"", _without_quotes(raw))
    marks = structure.translate(_NUMBERS, _BLANKS)
    return _CHARACTERS_OF_TOKEN * (marks.count(b"[1") + marks.count(b",1"))


def _without_quotes(raw: memoryview) -> bytes:
    """JSON in which every quotation mark begins a string or ends one: of what it escapes, a
    backslash and a quotation mark are an x."""
    text = bytes(raw)
    return text.replace(rb"\\", b"x").replace(rb"\"", b"x") if b"\\" in text else text


def _length(text: bytes) -> int:
    """The code points of a JSON string, without quotation marks and backslashes in it."""
    count = code_points(text)
    if b"\\" not in text:
        return count
    # Each escape is one character, and so are the two of a surrogate pair.
    pairs = len(_SURROGATE_PAIR.findall(text))
    return count - text.count(b"\\") - 4 * text.count(rb"\u") - pairs


def code_points(text: bytes) -> int:
    """The code points of a text in UTF-8. Total: of other bytes, no fewer than any reader finds."""
    return len(text) if text.isascii() else len(text.translate(None, _CONTINUATION))
