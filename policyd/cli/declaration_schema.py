"""The JSON Schema of declarations, for editors. It is made from what the policies declare."""

from typing import Any

from policyd.cli.declaration import DEFAULT, NEVER, VERSION
from policyd.descriptor.end_users import CALLERS
from policyd.engine.kinds import MAX_LIMIT, Limit, Names, Patterns, Switch
from policyd.engine.places import BODY_PLACES, HEADER_PLACE, MAX_PLACES
from policyd.engine.policy import MODES, OVERRIDES, Policy
from policyd.policies import TABLE

_Schema = dict[str, Any]
_MODES = [*MODES, DEFAULT]
_JUDGING = "audit|enforce"


def schema() -> _Schema:
    """The schema, JSON Schema 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "API keys and defaults of policyd, for policyd apply",
        **_object(
            {
                "version": {"const": VERSION, "description": "The version of this format."},
                "defaults": _defaults(),
                "keys": {
                    "description": "The API keys, by their names.",
                    "type": ["object", "null"],
                    "propertyNames": {"minLength": 1, "maxLength": 200},
                    "additionalProperties": {"$ref": "#/$defs/key"},
                },
            },
            required=["version"],
        ),
        "$defs": {"key": _key(), "policies": _policies()},
    }


def _object(properties: _Schema, **more: Any) -> _Schema:
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        **more,
    }


def _defaults() -> _Schema:
    header = {"type": "string", "pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"}
    fields = {
        "policies": {"$ref": "#/$defs/policies"},
        "end_user_headers": {
            "description": "Headers that may name the end user, such as x-forwarded-user.",
            "type": ["array", "null"],
            "items": header,
        },
        "end_user_callers": {
            "description": "The kinds of callers from which those headers count.",
            "type": ["array", "null"],
            "items": {"enum": list(CALLERS)},
        },
    }
    told = "What holds for keys that set nothing. If left out, they stay as they are."
    return _object(fields, description=told) | {"type": ["object", "null"]}


def _key() -> _Schema:
    place = {"anyOf": [{"enum": list(BODY_PLACES)}, {"pattern": f"^{HEADER_PLACE}.+$"}]}
    fields = {
        "policies": {"$ref": "#/$defs/policies"},
        "accept": {
            "description": "Where an end user may stand.",
            "type": "array",
            "items": {"type": "string"} | place,
            "minItems": 1,
            "maxItems": MAX_PLACES,
            "uniqueItems": True,
        },
        "expires": {
            "description": f"When the key expires: a moment, or {NEVER}.",
            "type": ["string", "null"],
            "examples": ["2027-01-31T09:30:00Z", NEVER],
        },
        "digest": {
            "description": "The SHA-256 of a secret that was made elsewhere, in hexadecimal.",
            "type": "string",
            "pattern": "^[0-9a-fA-F]{64}$",
        },
        "secret_file": {
            "description": "Where the secret is written, if policyd makes one for a new key.",
            "type": "string",
            "minLength": 1,
        },
    }
    both = {"type": "object", "required": ["digest", "secret_file"]}
    return _object(fields, **{"not": both}) | {"type": ["object", "null"]}


def _policies() -> _Schema:
    return _object({one.name: _policy(one) for one in TABLE.policies}) | {
        "type": ["object", "null"]
    }


def _policy(policy: Policy) -> _Schema:
    value, pattern = _value(policy)
    words = "|".join(_MODES if not pattern else ["off", DEFAULT])
    setting = {
        "type": "string",
        "pattern": f"^({words})$|^(off|{_JUDGING}):{pattern}$" if pattern else f"^({words})$",
        "examples": _examples(policy),
    }
    fields: _Schema = {"mode": {"enum": _MODES}}
    if value:
        fields["value"] = value
    if policy.header:
        fields["override"] = {
            "description": f"How far requests may override it by {policy.header}.",
            "enum": [*OVERRIDES, DEFAULT],
        }
    return {
        "title": policy.title,
        "description": f"{policy.hint} ({policy.kind.usage})",
        "anyOf": [setting, _object(fields)],
    }


def _examples(policy: Policy) -> list[str]:
    example = policy.kind.example
    return ["off", *(f"{mode}:{example}" if example else mode for mode in ("audit", "enforce"))]


def _value(policy: Policy) -> tuple[_Schema | None, str]:
    """The schema of a value as a field of its own, and its pattern in a setting; None and "" for a
    policy without a value."""
    kind = policy.kind
    if isinstance(kind, Switch):
        return None, ""
    if isinstance(kind, Limit):
        number = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}
        text = {"type": "string", "pattern": "^[1-9][0-9]{0,9}$"}
        return {"description": kind.value_usage, "anyOf": [number, text]}, "[1-9][0-9]{0,9}"
    if isinstance(kind, Names):
        names = {"type": "array", "items": {"enum": list(kind.choices)}, "minItems": 1}
        listed = {"description": kind.value_usage, "anyOf": [names, {"type": "string"}]}
        return listed, ".+"
    if isinstance(kind, Patterns):
        patterns = {"type": "array", "items": {"type": "string"}, "minItems": 1}
        return {"description": kind.value_usage, "anyOf": [patterns, {"type": "string"}]}, ".+"
    return {"description": kind.value_usage, "type": "string"}, ".+"
