"""Reads YAML within bounds, with the line of each value, and reports all problems at once.

Every value is a mapping, a list or a text: what a text means is up to its field. Anchors and
aliases are refused, as a few lines of them can stand for any amount of text.
"""

import difflib
from collections.abc import Collection
from typing import Any

import yaml

from policyd.errors import SettingsError

MAX_BYTES = 4 * 2**20
"""Bytes of a file, at most."""
_MAX_DEPTH = 16
_MAX_PROBLEMS = 30
"""Problems that are reported one by one; the others are counted."""
_EMPTY = ("", "~", "null")
"""How YAML and JSON write nothing."""


class _Composer(yaml.BaseLoader):
    """Makes nodes only, without aliases, and none too deep."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """See yaml.composer. Raises YAMLError."""
        event = self.peek_event()  # type: ignore[no-untyped-call]  # its stubs give it no types
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            raise yaml.MarkedYAMLError(
                problem=f"anchors and aliases (&{anchor}, *{anchor}) are not allowed: write it out",
                problem_mark=event.start_mark,
            )
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem="it is nested too deeply", problem_mark=event.start_mark
            )
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class Problems:
    """What is wrong with a file, by line."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._found: list[tuple[int, str]] = []

    def add(self, at: yaml.Node, text: str) -> None:
        """Note a problem at the line of a node."""
        self.add_at(at.start_mark.line + 1, text)

    def add_at(self, line: int, text: str) -> None:
        """Note a problem in a line."""
        self._found.append((line, text))

    def check(self) -> None:
        """Raises SettingsError with all problems, in the order of lines."""
        if not self._found:
            return
        found = sorted(self._found)
        lines = [f"  line {line}: {text}" for line, text in found[:_MAX_PROBLEMS]]
        if more := found[_MAX_PROBLEMS:]:
            lines.append(f"  and {len(more)} more")
        count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
        raise SettingsError(
            "\n".join([f"{self._file} has {count}, so nothing was changed:", *lines])
        )

    # --- what a node holds; each method notes what is wrong --------------------------------------

    def mapping(
        self, node: yaml.Node, what: str, known: Collection[str] = ()
    ) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """The names of a mapping, each with its own node and that of its value; only `known` names,
        if any are. An empty value counts as an empty mapping."""
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        if is_empty(node):
            return found
        if not isinstance(node, yaml.MappingNode):
            self.add(node, f"{what} takes names with values (NAME: VALUE), not {_kind(node)}")
            return found
        for key, value in node.value:
            name = self.text(key, f"a name in {what}")
            if name is None:
                continue
            if name in found:
                first = found[name][0].start_mark.line + 1
                self.add(key, f"{what} names {name[:64]!r} twice, first in line {first}")
            elif known and name not in known:
                self.add(key, f"{what} has no field {name[:64]!r}: {meant(name, known)}")
            else:
                found[name] = key, value
        return found

    def texts(self, node: yaml.Node, what: str) -> tuple[str, ...]:
        """The texts of a list."""
        if is_empty(node):
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self.add(node, f"{what} takes a list ([one, two]), not {_kind(node)}")
            return ()
        given = (self.text(one, f"an entry of {what}") for one in node.value)
        return tuple(one for one in given if one is not None)

    def text(self, node: yaml.Node, what: str) -> str | None:
        """The text of a node; None where it holds something else."""
        if isinstance(node, yaml.ScalarNode):
            return str(node.value)
        self.add(node, f"{what} is one word or text, not {_kind(node)}")
        return None


def is_empty(node: yaml.Node) -> bool:
    """Whether a node stands for nothing: it is empty, ~ or null."""
    return isinstance(node, yaml.ScalarNode) and not node.style and node.value in _EMPTY


def meant(name: str, known: Collection[str]) -> str:
    """A hint at what was meant by an unknown name."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"


def compose(content: bytes, file: str) -> yaml.Node | None:
    """The only document of a file; None where it is empty. Raises SettingsError."""
    if len(content) > MAX_BYTES:
        raise SettingsError(
            f"{file} is larger than {MAX_BYTES // 2**20} MiB, so nothing was changed: divide it"
        )
    try:
        text = content.decode("utf-8-sig")
        if text.lstrip().startswith("{"):
            # JSON may be indented by tabs, which YAML forbids; JSON's strings hold none.
            text = text.replace("\t", " ")
        return yaml.compose(text, Loader=_Composer)
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is not UTF-8 text (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        told = ", ".join(filter(None, (error.context, error.problem)))
        raise SettingsError(
            f"{file} cannot be read, so nothing was changed:\n  {line}{told}"
        ) from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{file} cannot be read, so nothing was changed: {error}") from None


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "names with values"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "nothing" if is_empty(node) else repr(str(node.value)[:64])
