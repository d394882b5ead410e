"""`make mutants`: changes the code a little at a time, and prints what no quick test notices.

    make mutants ARGS=policyd/engine/decision.py
    make mutants ARGS="policyd/engine policyd/descriptor/form.py"
    make mutants ARGS="policyd/engine/paths.py tests/engine/test_path_properties.py"

mutmut does the work, with [tool.mutmut] in pyproject.toml, in a copy of the code under mutants/. It
keeps what it found there: a file that has not changed is not tried again, unless it is named.

pyproject.toml leaves out the tests that take seconds. Those that are named here are run against
what survived the others, each time in a process of its own.

A change that no test can notice, as the code does the same with it, stands in equivalents.yaml,
with the reason. It is counted, and not printed.

What it cannot show: it changes the bodies of functions, not tables of modules, nor functions with
decorators (those with a cache). And what a function is called for while its module is imported has
happened before the change is switched on, so such a function seems to survive.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

MUTMUT = Path(sys.executable).with_name("mutmut")
TO_SHOW = ("survived", "no tests")
HANGS = 600
"""Seconds after which tests count as hanging."""
EQUIVALENTS = Path(__file__).with_name("equivalents.yaml")


class Change(NamedTuple):
    """A line as it was, and as a mutant has it, both without the blanks around them."""

    was: str
    now: str


def main(given: list[str]) -> int:
    """Try the files and folders, those of pyproject.toml if none is given; print the survivors."""
    tests = [path for path in given if path.startswith("tests/")]
    names = [_name(file) for file in sorted(_files(set(given) - set(tests)))]
    done = subprocess.run([MUTMUT, "run", *(f"{name}.x*" for name in names)], check=False)
    if done.returncode:
        return done.returncode
    counts: Counter[str] = Counter()
    for mutant, result in _results(names):
        if result not in TO_SHOW:
            counts[result] += 1
        elif tests and _is_noticed(mutant, tests):
            counts[f"killed by {' '.join(tests)}"] += 1
        elif is_equivalent(mutant, change := _output("show", mutant)):
            counts["equivalent"] += 1
        else:
            counts[result] += 1
            print(change)
    print(", ".join(f"{number} {result}" for result, number in counts.most_common()))
    return 0


def is_equivalent(mutant: str, diff: str) -> bool:
    """Whether equivalents.yaml gives a reason why no test notices this change."""
    found = changed(diff)
    module = mutant.partition(".x")[0]
    return any(
        change.get("was") == found.was and found.now in change.get("now", [found.now])
        for entry in yaml.safe_load(EQUIVALENTS.read_text())
        if entry["module"] == module
        for change in entry["changes"]
    )


def changed(diff: str) -> Change:
    """The change in a diff of one, as mutmut shows it."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    was = " ".join(line[1:].strip() for line in lines if line.startswith("-"))
    now = " ".join(line[1:].strip() for line in lines if line.startswith("+"))
    return Change(was, now)


def _is_noticed(mutant: str, tests: list[str]) -> bool:
    """Whether one of these tests fails with this change, or hangs."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    changed = os.environ | {"MUTANT_UNDER_TEST": mutant}
    try:
        # Where mutmut has put the changed code, and the tests.
        run = subprocess.run(
            command, cwd="mutants", env=changed, capture_output=True, timeout=HANGS, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    return run.returncode != 0


def _files(given: Iterable[str]) -> Iterator[Path]:
    for path in map(Path, given):
        yield from path.rglob("*.py") if path.is_dir() else [path]


def _name(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def _results(modules: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each mutant that was tried in these modules, in all if there is none, and its result."""
    wanted = tuple(f"{module}.x" for module in modules) or ("",)
    for line in _output("results", "--all", "true").splitlines():
        mutant, _, result = line.strip().partition(": ")
        if mutant.startswith(wanted) and result != "not checked":
            yield mutant, result


def _output(*command: str) -> str:
    return subprocess.run([MUTMUT, *command], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
