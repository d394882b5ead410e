"""Content-Type: what every server reads the same, and what a server may read as something else."""

import pytest

from policyd.descriptor import media_type
from policyd.descriptor.body import read_body
from policyd.descriptor.media_type import MAX_CONTENT_TYPE
from policyd.engine import endpoints
from policyd.engine.states import UserState

CALLS = endpoints.ENDPOINTS["/realtime/calls"]
JSON = b'{"user":"a"}'
JSON_SPELLINGS = ["application/json", 'application/json; charset="UTF-8" ;', "text/plain;"]


@pytest.mark.parametrize(
    ("text", "kind", "parameters"),
    [
        ("", "", {}),
        (" \t", "", {}),
        ("application/json", "application/json", {}),
        ("\tApplication/JSON ", "application/json", {}),
        ("json", "json", {}),
        ("a/b;c=D", "a/b", {"c": "D"}),
        ("a/b ; C=d; e=f", "a/b", {"c": "d", "e": "f"}),
        ('a/b; c=""', "a/b", {"c": ""}),
        ('a/b; c="d; e=f"', "a/b", {"c": "d; e=f"}),
        ('a/b; c="d/*e"', "a/b", {"c": "d/*e"}),
        ("a/b; CharSet=UTF-8", "a/b", {"charset": "UTF-8"}),
        ("a/b; charset=utf-8; boundary=B", "a/b", {"charset": "utf-8", "boundary": "B"}),
        ("multipart/mixed; BOUNDARY=B", "multipart/mixed", {"boundary": "B"}),
        ("a/b; c=".ljust(MAX_CONTENT_TYPE, "d"), "a/b", {"c": "d" * (MAX_CONTENT_TYPE - 7)}),
    ],
)
def test_what_is_read_alike(text: str, kind: str, parameters: dict[str, str]) -> None:
    """Type and subtype, and the names of parameters, are in lower case; values stay as they are."""
    assert media_type.media_type(text) == (kind, parameters)


@pytest.mark.parametrize(
    "text",
    [
        *("/", "a/", ";c=d", "a/b c", "a/b, c/d", "a/b;", "a/b; c", "a/b; c=", "a/b;; c=d"),
        *("a/b; c=d; C=e", "a/b; c = d", 'a/b; c="d', 'a/b; c="d" e', "a/b;\tc=d", "\xa0a/b"),
        *("a/b\n", "a/b; c=d\x00", 'a/b; c="\x7f"', "\u017fon"),
        # Extended spellings.
        *("a/b; c*=utf-8''d", "a/b; c*0=d; c*1=e", 'a/b; c="\\d"', 'a/b; c="\\\\"'),
        # The names of these parameters, wherever else they stand.
        *("a/b; xcharset=c", 'a/b; c="charset=d"', "a/b; charset=charset", "charset/b"),
        *("a/b; xboundary=c", 'a/b; c="boundary=d"', "a/b; boundary=Boundary", "a/boundary"),
        "a/b; xboundary=c; boundary=d",
        "a/b; c=".ljust(MAX_CONTENT_TYPE + 1, "d"),
    ],
)
def test_what_servers_read_differently(text: str) -> None:
    """Whatever some server reads in another way is malformed, and makes nothing of a body certain:
    it is neither JSON nor a session description."""
    with pytest.raises(ValueError, match=r"^[a-z ,]+$"):
        media_type.media_type(text)
    assert not media_type.is_sdp(text)
    assert not media_type.is_sdp(text.replace("a/b", media_type.SDP))


@pytest.mark.parametrize("text", ["a/b; c", "a/b; c*=d", "a/b; xcharset=c", "a/b; xboundary=c"])
def test_a_malformed_type(text: str) -> None:
    """A body of a malformed type is read as nothing, even where it is JSON or an offer."""
    assert not media_type.reads_as_json(text, JSON, is_coded=False)
    for kind in (text, text.replace("a/b", "application/sdp")):
        attributes = read_body(JSON, kind, "", CALLS)
        assert attributes.user.state is UserState.NOT_JSON


@pytest.mark.parametrize("spelling", JSON_SPELLINGS)
@pytest.mark.parametrize("blanks", [0, 64, 900])
def test_a_type_of_any_length(spelling: str, blanks: int) -> None:
    """A type is read the same whether its reading is cached or not."""
    assert media_type.reads_as_json(spelling + " " * blanks, JSON, is_coded=False)
    assert not media_type.reads_as_json(f"{' ' * blanks}{spelling} x", JSON, is_coded=False)


def test_what_is_cached() -> None:
    """The readings of short types are cached, and those of long ones are not."""
    media_type._of_json.cache_clear()
    for size in (64, 65):
        assert media_type.reads_as_json("text/plain".ljust(size), JSON, is_coded=False)
    assert media_type._of_json.cache_info().currsize == 1
    assert media_type.reads_as_json("text/plain".ljust(64), JSON, is_coded=False)
    assert media_type._of_json.cache_info().hits == 1
