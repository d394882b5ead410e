"""A declaration: the file that `policyd apply` takes and `policyd export` writes. It says which
keys there are, by name, and the server's defaults. Here it is read; declaration_writing.py writes
it.

    version: 1
    defaults:
      policies: {enforce_user_ids: audit}
    keys:
      app:
        policies:
          max_tokens: enforce:500
          enforce_user_ids: {mode: enforce, override: locked}
        accept: [user]
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from policyd.cli import times
from policyd.cli.yaml_nodes import Problems, compose, is_empty, meant
from policyd.descriptor.end_users import check_end_users
from policyd.engine.places import IDENTIFIERS, accept_problem
from policyd.engine.policy import MODES, OVERRIDES, Policy, parse_setting
from policyd.engine.settings import ServerDefaults, Setting, Settings
from policyd.engine.states import Override
from policyd.errors import PolicydError, SettingsError
from policyd.keys import api_key
from policyd.keys.settings import DeclaredKey
from policyd.policies import TABLE

VERSION = 1
TOP = ("version", "defaults", "keys")
DEFAULTS = ("policies", "end_user_headers", "end_user_callers")
KEY = ("policies", "accept", "expires", "digest", "secret_file")
POLICY = ("mode", "value", "override")
DEFAULT = "default"
"""The mode that leaves a policy to the server."""
NEVER = "never"


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a file declares."""

    keys: tuple[DeclaredKey, ...] = ()
    defaults: ServerDefaults | None = None
    """None: they stay as they are."""
    secret_files: Mapping[str, Path] = field(default_factory=dict)
    """By the key's name: the file for the secret that policyd makes for it."""


def read(content: bytes, file: str, folder: Path) -> Declaration:
    """What the content of a file declares. Relative paths are from `folder`.

    Raises SettingsError, which names every problem with its line.
    """
    top = compose(content, file)
    if top is None:
        raise SettingsError(
            f"{file} is empty, so nothing was changed: begin with version: {VERSION}"
        )
    reader = _Reader(Problems(file), folder)
    found = reader.declaration(top)
    if not (getattr(top, "flow_style", False) or content.endswith(b"\n")):
        # Half a number is a number, too.
        cut_off = "the last line does not end in a line break, so the file may be cut off: add one"
        reader.problems.add_at(content.count(b"\n") + 1, cut_off)
    reader.problems.check()
    return found


class _Reader:
    """Reads nodes, and notes what is wrong with them."""

    def __init__(self, problems: Problems, folder: Path) -> None:
        self.problems = problems
        self._folder = folder
        self._secret_files: dict[str, Path] = {}
        self._taken: set[Path] = set()

    def declaration(self, top: yaml.Node) -> Declaration:
        # First, as a newer version may have fields that this one does not know.
        if not self._check_version(top):
            return Declaration()
        fields = self.problems.mapping(top, "the file", TOP)
        defaults = self._defaults(fields["defaults"][1]) if "defaults" in fields else None
        keys = self._keys(fields["keys"][1]) if "keys" in fields else ()
        return Declaration(keys, defaults, self._secret_files)

    def _check_version(self, top: yaml.Node) -> bool:
        pairs = top.value if isinstance(top, yaml.MappingNode) else []
        given = [value for name, value in pairs if name.value == "version"]
        if not given:
            self.problems.add(top, f"the version is missing: begin with version: {VERSION}")
            return False
        text = str(given[0].value)
        if text == str(VERSION):
            return True
        is_newer = text.isascii() and text.isdecimal() and int(text[:9]) > VERSION
        fix = "it is of a newer policyd: use that one" if is_newer else f"write version: {VERSION}"
        self.problems.add(
            given[0], f"this policyd reads version {VERSION} of these files, not {text[:20]}: {fix}"
        )
        return False

    def _defaults(self, node: yaml.Node) -> ServerDefaults:
        fields = self._fields(node, "defaults", DEFAULTS)
        named = ("end_user_headers", "end_user_callers")
        given, callers = (self._texts(fields, name, "defaults") for name in named)
        headers: tuple[str, ...] = tuple(one.lower() for one in given)
        self._try(node, lambda: check_end_users(headers, callers, named))
        return ServerDefaults(self._policies(fields.get("policies"), "defaults"), headers, callers)

    def _keys(self, node: yaml.Node) -> tuple[DeclaredKey, ...]:
        # Imported late: a command that reads no file needs no SQL.
        from policyd.store.key_rows import valid_name

        found: dict[str, DeclaredKey] = {}
        for given, (at, value) in self.problems.mapping(node, "keys").items():
            name = self._try(at, partial(valid_name, given))
            if name is None:
                continue
            if name in found:
                self.problems.add(at, f"two keys have the name {name[:64]!r}, apart from blanks")
            found[name] = self._key(name, value)
        return tuple(found.values())

    def _key(self, name: str, node: yaml.Node) -> DeclaredKey:
        where = f"the key {name[:64]!r}"
        fields = self._fields(node, where, KEY)
        accept = self._accept(fields, where)
        digest = self._digest(fields, where)
        if "secret_file" in fields:
            self._secret_file(name, fields["secret_file"], where, has_digest=digest is not None)
        policies = self._policies(fields.get("policies"), where)
        return DeclaredKey(name, policies, accept, self._expires(fields, where), digest)

    def _accept(self, fields: Mapping[str, yaml.Node], where: str) -> tuple[str, ...]:
        if "accept" not in fields:
            return IDENTIFIERS
        node = fields["accept"]
        accept = self.problems.texts(node, f"accept of {where}")
        problem = accept_problem(accept) if isinstance(node, yaml.SequenceNode) else ""
        if is_empty(node) or problem:
            self.problems.add(node, f"{where}: {problem or accept_problem(())}")
        return accept

    def _digest(self, fields: Mapping[str, yaml.Node], where: str) -> str | None:
        if "digest" not in fields:
            return None
        text = self.problems.text(fields["digest"], f"digest of {where}")
        if text is not None:
            self._try(fields["digest"], lambda: api_key.read_digest(text), where)
        return text

    def _secret_file(self, name: str, node: yaml.Node, where: str, *, has_digest: bool) -> None:
        text = self.problems.text(node, f"secret_file of {where}")
        if text is None:
            return
        if has_digest:
            self.problems.add(
                node, f"{where} has a digest, so no secret is made: take secret_file or digest out"
            )
        path = self._folder / text
        if not text.isprintable() or not text or path in self._taken:
            self.problems.add(node, f"secret_file of {where} takes a path of its own")
        self._secret_files[name] = path
        self._taken.add(path)

    def _expires(self, fields: Mapping[str, yaml.Node], where: str) -> datetime | None:
        node = fields.get("expires")
        if node is None or is_empty(node):
            return None
        text = self.problems.text(node, f"expires of {where}")
        if text is None or text.lower() == NEVER:
            return None
        try:
            return times.moment(text)
        except (ValueError, OverflowError):
            self.problems.add(
                node,
                f"expires of {where} is a moment such as 2027-01-31T09:30:00Z, or {NEVER}, not "
                f"{text[:64]!r}",
            )
            return None

    def _policies(self, node: yaml.Node | None, where: str) -> Settings:
        if node is None:
            return ()
        found: list[tuple[str, Setting]] = []
        for name, (at, value) in self.problems.mapping(node, f"policies of {where}").items():
            policy = TABLE.by_name.get(name)
            if policy is None:
                hint = meant(name, TABLE.by_name)
                self.problems.add(at, f"{where}: there is no policy {name[:64]!r}: {hint}")
                continue
            setting = self._setting(policy, value, where)
            if setting is not None and setting != Setting():
                found.append((name, setting))
        return TABLE.in_order(found)

    def _setting(self, policy: Policy, node: yaml.Node, where: str) -> Setting | None:
        if isinstance(node, yaml.ScalarNode):
            plain: Setting | None = self._try(node, lambda: _mode(policy, str(node.value)), where)
            return plain
        what = f"{policy.name} of {where}"
        fields = self._fields(node, what, POLICY)
        words = {
            name: self._value(one, what) if name == "value" else self.problems.text(one, what)
            for name, one in fields.items()
        }
        if None in words.values():
            return None
        mode, value = words.get("mode") or "", words.get("value") or ""
        text = f"{mode or DEFAULT}:{value}" if value else mode or DEFAULT
        setting: Setting | None = self._try(node, lambda: _mode(policy, text), where)
        override = self._try(node, lambda: _override(policy, words.get("override")), where)
        return None if setting is None else setting._replace(override=override)

    def _value(self, node: yaml.Node, what: str) -> str | None:
        if isinstance(node, yaml.SequenceNode):
            return ",".join(self.problems.texts(node, what))
        return self.problems.text(node, what)

    def _texts(self, fields: Mapping[str, yaml.Node], name: str, of: str) -> tuple[str, ...]:
        return self.problems.texts(fields[name], f"{name} of {of}") if name in fields else ()

    def _fields(
        self, node: yaml.Node, what: str, known: tuple[str, ...]
    ) -> Mapping[str, yaml.Node]:
        found = self.problems.mapping(node, what, known)
        return {name: value for name, (_, value) in found.items()}

    def _try(self, at: yaml.Node, work: Callable[[], Any], where: str = "") -> Any:
        """The result of `work`; None where it finds a problem, which is noted."""
        try:
            return work()
        except (ValueError, PolicydError) as error:
            self.problems.add(at, f"{where}: {error}" if where else str(error))
            return None


def _mode(policy: Policy, text: str) -> Setting:
    if text.strip().lower() == DEFAULT:
        return Setting()
    if text.strip().lower() in ("true", "false", "yes", "no", "on"):
        words = ", ".join(MODES)
        raise ValueError(f"{policy.name} takes a mode ({words}), not {text[:64]!r}")
    return parse_setting(policy, text)


def _override(policy: Policy, word: str | None) -> Override | None:
    if not word or word == DEFAULT:
        return None
    if word not in OVERRIDES:
        raise ValueError(
            f"override of {policy.name} takes {', '.join(OVERRIDES)}, not {word[:64]!r}"
        )
    if not policy.header:
        raise ValueError(f"{policy.name} has no header, so there is nothing to allow or to lock")
    return OVERRIDES[word]
