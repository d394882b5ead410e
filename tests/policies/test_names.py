"""Only its own file names a policy: everything else is made of what the file declares."""

import re
from collections.abc import Iterator
from pathlib import Path

from policyd.policies import TABLE

ROOT = Path(__file__).parents[2]
OWN = {
    "policyd/policies": "each policy is named there",
    "policyd/v1": "generated from protos/, whose field of the original policy keeps its name",
    "policyd/store/migrations/versions": "a migration is about the tables of its day",
}
"""Folders whose files may name policies."""
ELSEWHERE = {
    ("policyd/descriptor/stated.py", "max_tokens"): "a member of OpenAI's bodies",
    ("policyd/cli/declaration.py", "enforce_user_ids"): "the example of a declaration",
    ("policyd/cli/declaration.py", "max_tokens"): "the example of a declaration",
    ("policyd/services/key_messages.py", "enforce_user_ids"): "the field keeps its name",
}
"""Files that name one all the same, and why."""


def files() -> Iterator[Path]:
    """The Python and the templates of both packages."""
    for package in ("policyd", "gateway"):
        for suffix in ("py", "html", "css", "js"):
            for file in sorted((ROOT / package).rglob(f"*.{suffix}")):
                if not any(file.is_relative_to(ROOT / folder) for folder in OWN):
                    yield file


def names() -> Iterator[tuple[str, str]]:
    """Each file that names a policy, by its name or its title, in any spelling."""
    spelt = {
        policy.name: re.compile(rf"{policy.name.replace('_', '[_-]')}|(?i:{policy.title})")
        for policy in TABLE.policies
    }
    for file in files():
        text = file.read_text(encoding="utf-8")
        for name, spelling in spelt.items():
            if spelling.search(text):
                yield str(file.relative_to(ROOT)), name


def test_only_its_own_file_names_a_policy() -> None:
    """No other file names a policy, except those listed as exceptions, each of which is needed."""
    assert sorted(names()) == sorted(ELSEWHERE)
