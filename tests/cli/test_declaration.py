"""Declarations: files that say which keys and defaults there are."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policyd.cli import declaration
from policyd.cli.declaration import Declaration, read
from policyd.cli.declaration_schema import schema
from policyd.cli.declaration_writing import write
from policyd.cli.yaml_nodes import MAX_BYTES
from policyd.engine.policy import Policy, check_settings
from policyd.engine.settings import ServerDefaults, Setting, Settings
from policyd.engine.states import Mode, Override
from policyd.errors import SettingsError
from policyd.keys.settings import DeclaredKey
from policyd.policies import TABLE


def parsed(text: str | bytes) -> Declaration:
    content = text.encode() if isinstance(text, str) else text
    return read(content, "keys.yaml", Path("/secrets"))


def problems(text: str | bytes) -> str:
    """What is wrong with a file."""
    with pytest.raises(SettingsError) as found:
        parsed(text)
    return str(found.value)


FULL = """\
version: 1
defaults:
  policies: {enforce_user_ids: audit}
  end_user_headers: [X-Forwarded-User]
  end_user_callers: [grpc, http]
keys:
  app:
    policies:
      max_tokens: enforce:500
      enforce_user_ids: {mode: enforce, override: locked}
      disabled_models: {mode: audit, value: ["gpt-4*", o1]}
      user_format: default
    accept: [user]
    expires: 2027-01-31T01:00:00+01:00
    digest: %s
  plain:
  other: {secret_file: other.key, expires: never}
""" % ("ab" * 32)


def test_every_field() -> None:
    """Each field of a declaration is read."""
    found = parsed(FULL)
    assert found.defaults == ServerDefaults(
        (("enforce_user_ids", Setting(Mode.AUDIT)),), ("x-forwarded-user",), ("grpc", "http")
    )
    app, plain, other = found.keys
    assert dict(app.policies) == {
        "max_tokens": Setting(Mode.ENFORCE, "500"),
        "enforce_user_ids": Setting(Mode.ENFORCE, "", Override.LOCKED),
        "disabled_models": Setting(Mode.AUDIT, "gpt-4*,o1"),
    }
    assert (app.accept, app.digest) == (("user",), "ab" * 32)
    assert app.expires_at == datetime(2027, 1, 31, tzinfo=UTC)
    assert plain == DeclaredKey("plain")
    assert other == DeclaredKey("other")
    assert found.secret_files == {"other": Path("/secrets/other.key")}


def test_json() -> None:
    """JSON is taken too, however it is indented."""
    as_json = json.dumps(yaml.safe_load(FULL), indent="\t", default=datetime.isoformat)
    assert parsed(as_json) == parsed(FULL)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "keys.yaml is empty"),
        ("keys: {}", "line 1: the version is missing"),
        ("version: 2\nkeyz: {}", "line 1: this policyd reads version 1 of these files, not 2"),
        ("version: 9" + "9" * 5000, "use that one"),
        ("version: one", "write version: 1"),
        ("[1]", "the version is missing"),
        ("version: 1\nkeys: [app]", "line 2: keys takes names with values"),
        ("version: 1\nkeys:\n  a: {}\n  a: {}", "line 4: keys names 'a' twice, first in line 3"),
        ("version: 1\nkeys:\n  a: {}\n  'a ': {}", "line 4: two keys have the name 'a'"),
        ("version: 1\nkeys:\n  '': {}", "line 3: a key's name has 1 to 200"),
        ("version: 1\nkyes: {}", "line 2: the file has no field 'kyes': did you mean keys?"),
        ("version: 1\nkeys:\n  a:\n    policies: {max_tokens: audit:5", "line 4: "),
        ("version: 1\nkeys:\n  a:\n    policies:\n      max_tokens: audit:5", "may be cut off"),
        ("version: 1\nkeys:\n  a: {acept: [user]}", "did you mean accept?"),
        ("version: 1\nkeys:\n  a: {accept: user}", "accept of the key 'a' takes a list"),
        ("version: 1\nkeys:\n  a: {accept: []}", "accept is empty"),
        ("version: 1\nkeys:\n  a: {accept: [[user]]}", "is one word or text, not a list"),
        ("version: 1\nkeys:\n  a: {policies: {max_token: off}}", "did you mean max_tokens?"),
        ("version: 1\nkeys:\n  a: {policies: {max_tokens: audit:x}}", "max_tokens: a limit is"),
        ("version: 1\nkeys:\n  a: {policies: {max_tokens: [1]}}", "takes names with values"),
        ("version: 1\nkeys:\n  a: {policies: {enforce_user_ids: on}}", "takes a mode"),
        ("version: 1\nkeys:\n  a: {policies: {max_tokens: off, max_tokens: off}}", "twice"),
        (
            "version: 1\nkeys:\n  a: {policies: {allowed_models: {mode: off, override: locked}}}",
            "has no header",
        ),
        (
            "version: 1\nkeys:\n  a: {policies: {max_tokens: {mode: off, override: never}}}",
            "override of max_tokens takes any, tighten_only, locked",
        ),
        ("version: 1\nkeys:\n  a: {expires: soon}", "expires of the key 'a' is a moment"),
        ("version: 1\nkeys:\n  a: {digest: abc}", "64 hexadecimal digits"),
        (
            f"version: 1\nkeys:\n  a: {{digest: {'a' * 64}, secret_file: x}}",
            "take secret_file or digest out",
        ),
        (
            'version: 1\nkeys:\n  a: {secret_file: "x\\0y"}',
            "secret_file of the key 'a' takes a path of its own",
        ),
        (
            "version: 1\nkeys:\n  a: {secret_file: x}\n  b: {secret_file: x}",
            "line 4: secret_file of the key 'b' takes a path of its own",
        ),
        ("version: 1\ndefaults: {end_user_headers: [x-user]}", "go together"),
        ("version: 1\ndefaults: {end_user_callers: [tcp], end_user_headers: [x-u]}", "not 'tcp'"),
        ("version: 1\ndefaults: {policies: {nothing: off}}", "there is no policy 'nothing'"),
        ("version: 1\nkeys:\n  a: &x {}\n  b: *x", "line 3: anchors and aliases"),
        ("version: 1\nkeys:\n  a: {accept: [us", "line 3: "),
        ("version: 1\nkeys:\n  a: 'half", "line 3: "),
        ("version: 1\n---\nversion: 1", "line 2: "),
        ("version: 1\nkeys: " + "[" * 5000, "nested too deeply"),
        ("version: 1\n\tkeys: {}", "line 2: "),
        (b"version: 1\nkeys: {\xff: {}}", "not UTF-8 text"),
        (b"version: 1\n#" + b"x" * MAX_BYTES, "larger than 4 MiB"),
    ],
)
def test_bad_files(text: str | bytes, told: str) -> None:
    """An unusable file is refused with the line, the cause and the fix."""
    found = problems(text)
    assert told in found
    assert "nothing was changed" in found or "UTF-8" in found


def test_all_problems_at_once() -> None:
    """The error lists every problem in the order of lines, up to thirty."""
    keys = "".join(f"  key-{number}: {{acept: [user]}}\n" for number in range(40))
    found = problems("version: 1\nkeys:\n" + keys).splitlines()
    assert found[0] == "keys.yaml has 40 problems, so nothing was changed:"
    assert [line.split(":")[0].strip() for line in found[1:31]] == [
        f"line {number}" for number in range(3, 33)
    ]
    assert found[31:] == ["  and 10 more"]


# Properties


def settings_of(policy: Policy, *, of_key: bool) -> st.SearchStrategy[tuple[str, Setting]]:
    """What may be set for one policy."""
    example = policy.kind.example
    judging = st.sampled_from([Mode.AUDIT, Mode.ENFORCE])
    values = st.sampled_from([(Mode.OFF, ""), (None, "")]) | judging.map(lambda m: (m, example))
    may = [None, *Override] if policy.header else [None]
    if of_key and policy.is_original:
        may.remove(None)  # A key's row always has one.
    made = st.builds(lambda one, way: Setting(one[0], one[1], way), values, st.sampled_from(may))
    return made.map(lambda one: (policy.name, one))


def all_settings(*, of_key: bool) -> st.SearchStrategy[Settings]:
    """What may be set for all policies."""
    some = st.tuples(*(st.none() | settings_of(one, of_key=of_key) for one in TABLE.policies))
    return some.map(lambda found: check_settings(TABLE, tuple(filter(None, found))))


NAMES = st.text(min_size=1, max_size=30).filter(lambda name: name.isprintable() and name.strip())
KEYS = st.builds(
    DeclaredKey,
    NAMES.map(str.strip),
    all_settings(of_key=True),
    st.lists(
        st.sampled_from(["user", "safety_identifier", "header:x-user"]), min_size=1, unique=True
    ).map(tuple),
    st.none() | st.datetimes(timezones=st.just(UTC)),
)
DEFAULTS = st.builds(
    ServerDefaults,
    all_settings(of_key=False),
    st.just(("x-forwarded-user",)),
    st.lists(st.sampled_from(["grpc", "http", "envoy"]), min_size=1, unique=True).map(tuple),
)


def alike(key: DeclaredKey) -> DeclaredKey:
    """The key without what its row says anyway: any request may override the original policy."""
    usual = ("enforce_user_ids", Setting(override=Override.ANY))
    held = dict(key.policies)
    one = held.get(usual[0], Setting())
    if one.override is Override.ANY:
        held[usual[0]] = one._replace(override=None)
    kept = ((name, setting) for name, setting in held.items() if setting != Setting())
    return DeclaredKey(key.name, TABLE.in_order(kept), key.accept, key.expires_at)


@given(st.lists(KEYS, max_size=5, unique_by=lambda key: key.name), st.none() | DEFAULTS)
def test_what_is_written_is_read(keys: list[DeclaredKey], defaults: ServerDefaults | None) -> None:
    """Reading what was written gives the same; and an editor finds nothing wrong with it."""
    text = write(Declaration(tuple(keys), defaults))
    found = parsed(text)
    assert found.keys == tuple(map(alike, keys))
    assert found.defaults == defaults
    jsonschema.validate(yaml.safe_load(text), schema())


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes(content: bytes) -> None:
    """No file ends in another error than the one that names its problems."""
    with suppress(SettingsError):
        parsed(content)


def test_half_a_file() -> None:
    """A file that is cut off within a line is refused: half a number would be a number. One that
    ends with a line has whole keys only."""
    names = [key.name for key in parsed(FULL).keys]
    for length in range(len(FULL)):
        if FULL[:length].endswith("\n"):
            with suppress(SettingsError):
                found = [key.name for key in parsed(FULL[:length]).keys]
                assert found == names[: len(found)]
        else:
            assert problems(FULL[:length])


# The schema


@pytest.mark.parametrize(
    ("key", "is_right"),
    [
        ({"policies": {"max_tokens": "enforce:500"}}, True),
        ({"policies": {"max_tokens": {"mode": "audit", "value": 500, "override": "locked"}}}, True),
        ({"policies": {"enforce_user_ids": "enforce"}}, True),
        ({"policies": {"disabled_models": {"mode": "audit", "value": ["gpt-4*"]}}}, True),
        ({"policies": {"allowed_operations": {"mode": "audit", "value": ["embedding"]}}}, True),
        ({"accept": ["user", "header:x-user"], "expires": "never"}, True),
        (None, True),
        ({"policies": {"max_tokens": "enforce"}}, False),
        ({"policies": {"max_tokens": "enforce:many"}}, False),
        ({"policies": {"enforce_user_ids": "enforce:1"}}, False),
        ({"policies": {"allowed_operations": {"mode": "audit", "value": ["chat"]}}}, False),
        ({"policies": {"allowed_models": {"mode": "audit", "override": "locked"}}}, False),
        ({"policies": {"max_token": "off"}}, False),
        ({"accept": []}, False),
        ({"accept": ["email"]}, False),
        ({"digest": "abc"}, False),
        ({"digest": "a" * 64, "secret_file": "x"}, False),
        ({"secret": "x"}, False),
    ],
)
def test_schema(key: Any, is_right: bool) -> None:
    """An editor finds wrong what policyd finds wrong, of each kind of setting."""
    content = {"version": 1, "keys": {"app": key}}
    validator = jsonschema.Draft202012Validator(schema())
    assert validator.is_valid(content) == is_right
    try:
        parsed(json.dumps(content))
        assert is_right
    except SettingsError:
        assert not is_right


def test_schema_is_one() -> None:
    """The schema is a JSON Schema, and knows every policy and every field."""
    jsonschema.Draft202012Validator.check_schema(schema())
    assert set(schema()["$defs"]["policies"]["properties"]) == set(TABLE.by_name)
    assert set(schema()["$defs"]["key"]["properties"]) == set(declaration.KEY)
    assert set(schema()["properties"]) == set(declaration.TOP)
