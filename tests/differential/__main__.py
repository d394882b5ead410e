"""Whether policyd ever sees a user where another reader sees none, or another one.

    python -m tests.differential --bodies 20000 --seed 1

Only bodies in which policyd sees a user are given to the others: to reject one is always safe.
"""

import argparse
import base64
import json
import logging
import shutil
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from policyd.descriptor import form
from policyd.descriptor.body import MAX_BODY, read_body
from policyd.descriptor.content_encoding import decompress
from policyd.descriptor.identifiers import classify
from policyd.engine import endpoints
from policyd.engine.states import UserState
from tests.differential import generate, readers
from tests.differential.generate import Case
from tests.differential.readers import Users

HERE = Path(__file__).parent
ENDPOINTS = {
    "json": endpoints.ENDPOINTS["/chat/completions"],
    "form": endpoints.ENDPOINTS["/images/edits"],
}
_JQ = (
    '{jq: (.body | @base64d | try (fromjson | if type != "object" then null elif has("user") then'
    ' [.user | if type == "string" then . else null end] else [] end) catch null)}'
)
_AT_ONCE = 2000
# Readers that differ by their own fault; policyd follows the standard and real clients.
KNOWN = {
    "sqlite": "it undoes no escapes in names, and ends a string at a NUL",
    "sanic": "it takes the boundary's own letters for the boundary, without dashes before them",
    "node formidable": "a field with a Content-Type, as .NET and Java send it, is a file to it",
}


class External(NamedTuple):
    """A program with readers, which reads and writes a line of JSON for each body."""

    command: tuple[str, ...]
    needs: Path
    kinds: tuple[str, ...]


EXTERNALS = {
    "node": External(
        ("node", str(HERE / "node/readers.mjs")),
        HERE / "node/node_modules/.installed",
        ("json", "form", "urlencoded"),
    ),
    "go": External((str(HERE / "go/reader"),), HERE / "go/reader", ("json", "form", "urlencoded")),
    "perl": External(("perl", str(HERE / "perl/reader.pl")), HERE / "perl/reader.pl", ("json",)),
    "jq": External(("jq", "-c", _JQ), HERE, ("json",)),
}


class Asked(NamedTuple):
    """One reading to request: of `body`, by the readers of one kind."""

    kind: str
    body: bytes
    content_type: str
    expected: frozenset[str]
    """The users that a reader may find; none where it may find no field at all."""
    why: str
    case: Case


def asked(case: Case) -> Iterator[Asked]:
    """The readings to request of a body in which policyd sees a user."""
    plain = _plain(case)
    users = frozenset(_users(case, plain))
    yield Asked(case.kind, plain, case.content_type, users, "as policyd reads it", case)
    if plain != case.body:
        yield Asked(case.kind, case.body, case.content_type, users, "not decompressed", case)
        first = _first_stream(case)
        if first is not None:
            yield Asked(case.kind, first, case.content_type, users, "first stream", case)
    if "urlencoded" in case.content_type.lower():
        for body in {plain, case.body}:
            yield Asked("urlencoded", body, case.content_type, frozenset(), "as a form", case)


def _plain(case: Case) -> bytes:
    return decompress(case.body, case.content_encoding, MAX_BODY)


def _first_stream(case: Case) -> bytes | None:
    bits = {"gzip": 31, "x-gzip": 31, "deflate": 15}.get(case.content_encoding)
    return zlib.decompressobj(bits).decompress(case.body) if bits else None


def _users(case: Case, plain: bytes) -> list[str]:
    """Every user in the body: of repeats that are all valid, a reader takes any one."""
    if case.kind == "form":
        fields = form.fields(plain, form.boundary(case.content_type), "user")
        return [field.value for field in fields if field.name == "user" and field.value]
    members: list[tuple[str, object]] = []
    json.loads(plain, object_pairs_hook=lambda pairs: members.__setitem__(slice(None), pairs))
    return [str(value) for name, value in members if name.casefold() == "user"]


def problem(users: Users | None, one: Asked) -> str:
    """What is wrong with a reader's result; empty if it is harmless."""
    if users is None:
        return ""
    if one.kind == "urlencoded":
        return f"finds the fields {users}" if users else ""
    if not users:
        return "" if _is_empty(one) else "sees no user"
    if any(user is None or classify(user) is not UserState.VALID for user in users):
        return "sees a user that is none"
    # Some readers drop a byte order mark before it, which changes no name.
    names = {user.lstrip("\ufeff") for user in users if user}
    expected = {user.lstrip("\ufeff") for user in one.expected}
    return "" if names <= expected else "sees another user"


def _is_empty(one: Asked) -> bool:
    """Whether the body is a form without a part, or none to readers that heed a type's letter case.

    Such a body requests nothing.
    """
    if one.kind != "form":
        return False
    has_part = b"--" + form.boundary(one.content_type) in one.body
    return not (has_part and one.content_type.startswith("multipart/form-data"))


def main() -> int:
    """Print the number of bodies tried and the differences. Returns 1 if there are any."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bodies", type=int, default=20_000, help="bodies of each kind to try")
    options.add_argument("--seed", type=int, default=1, help="which bodies those are")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()  # Readers log the bodies that they reject.
    present = _present()
    differ = 0
    for name, make in generate.MAKERS.items():
        tried = list(generate.cases(make, given.seed, given.bodies))
        valid = [case for case in tried if _is_valid(case)]
        readings, found = _compare([one for case in valid for one in asked(case)], present)
        unknown = [one for one in found if one[0] not in KNOWN]
        print(
            f"{name}: {len(tried)} bodies tried, policyd sees a user in {len(valid)}; {readings} "
            f"readings by others, {len(unknown)} that differ, {len(found) - len(unknown)} known to"
        )
        _show(unknown)
        differ += len(unknown)
    for name, why in KNOWN.items():
        print(f"Known to differ: {name}: {why}")
    return 1 if differ else 0


def _present() -> dict[str, External]:
    present = {}
    for name, external in EXTERNALS.items():
        if shutil.which(external.command[0]) and external.needs.exists():
            present[name] = external
        else:
            print(f"{name} is missing: its readers are skipped")
    return present


def _is_valid(case: Case) -> bool:
    attributes = read_body(
        case.body, case.content_type, case.content_encoding, ENDPOINTS[case.kind]
    )
    return attributes.user.state is UserState.VALID


_Found = list[tuple[str, str, Asked]]


def _compare(all_asked: list[Asked], present: dict[str, External]) -> tuple[int, _Found]:
    readings, found = 0, []
    waiting = iter(all_asked)
    while chunk := list(islice(waiting, _AT_ONCE)):
        answers = [readers.read(one.kind, one.body, one.content_type) for one in chunk]
        for external in present.values():
            _ask(external, chunk, answers)
        for one, answer in zip(chunk, answers, strict=True):
            readings += len(answer)
            problems = ((name, problem(users, one)) for name, users in answer.items())
            found += [(name, what, one) for name, what in problems if what]
    return readings, found


def _ask(external: External, chunk: list[Asked], answers: list[dict[str, Users | None]]) -> None:
    """Add to `answers` what an external program reads in `chunk`."""
    places = [place for place, one in enumerate(chunk) if one.kind in external.kinds]
    lines = [_line(chunk[place]) for place in places]
    done = subprocess.run(external.command, input="".join(lines), stdout=-1, check=True, text=True)
    for place, line in zip(places, done.stdout.splitlines(), strict=True):
        answers[place] |= json.loads(line)


def _line(one: Asked) -> str:
    body = base64.b64encode(one.body).decode()
    return json.dumps({"kind": one.kind, "type": one.content_type, "body": body}) + "\n"


def _show(found: _Found) -> None:
    for (name, what, why), count in Counter((n, w, one.why) for n, w, one in found).most_common():
        print(f"  {count} times {name} {what} ({why}), as in:")
        example = next(one for n, w, one in found if (n, w, one.why) == (name, what, why))
        case = example.case
        print(f"    {case.content_type!r} {case.content_encoding!r}\n    {case.body[:400]!r}")
        print(f"    expected {sorted(example.expected)}")


if __name__ == "__main__":
    sys.exit(main())
