"""Text that clients sent, shown so that it does no harm and hides nothing."""

import unicodedata
from collections.abc import Iterable
from itertools import groupby

from markupsafe import Markup, escape

# Controls, invisible formatting (of which the direction marks are the dangerous ones), surrogates,
# private and unassigned characters, and the separators that browsers treat as line breaks.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def visible(text: str) -> Markup:
    """`text` as HTML with a text direction of its own, its hidden characters made visible."""
    if text.isprintable():  # Most texts are, and the check is quick.
        return Markup("<bdi>") + text + Markup("</bdi>")
    parts = [
        _shown(characters) if is_hidden else escape("".join(characters))
        for is_hidden, characters in groupby(text, _is_hidden)
    ]
    return Markup("<bdi>{}</bdi>").format(Markup("").join(parts))


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN


def _shown(characters: Iterable[str]) -> Markup:
    names = "".join(map(_name, characters))
    return Markup('<span class="hidden-character">{}</span>').format(names)


def _name(character: str) -> str:
    return f"\u2039U+{ord(character):04X}\u203a"


def plain(text: str) -> str:
    """`text` with its hidden characters made visible, without HTML: for attributes and titles."""
    return "".join(_name(one) if _is_hidden(one) else one for one in text)


def sentence(clause: str) -> str:
    """A clause, such as an error's text, as a sentence."""
    return f"{clause[:1].upper()}{clause[1:]}."
