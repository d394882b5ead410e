"""`make mutants`: changes the code a little at a time, and prints what no quick test notices.

    make mutants ARGS=policyd/engine/decision.py
    make mutants ARGS="policyd/engine policyd/descriptor/form.py"

mutmut does the work, with [tool.mutmut] in pyproject.toml, in a copy of the code under mutants/. It
keeps what it found there: a file that has not changed is not tried again, unless it is named.

What it cannot show: it changes the bodies of functions, not tables of modules, nor functions with
decorators (those with a cache). And what a function is called for while its module is imported has
happened before the change is switched on, so such a function seems to survive.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

MUTMUT = Path(sys.executable).with_name("mutmut")
TO_SHOW = ("survived", "no tests")


def main(given: list[str]) -> int:
    """Try the files and folders, those of pyproject.toml if none is given; print the survivors."""
    names = [_name(file) for file in sorted(_files(given))]
    done = subprocess.run([MUTMUT, "run", *(f"{name}.x*" for name in names)], check=False)
    if done.returncode:
        return done.returncode
    counts: Counter[str] = Counter()
    for mutant, result in _results(names):
        counts[result] += 1
        if result in TO_SHOW:
            print(_output("show", mutant))
    print(", ".join(f"{number} {result}" for result, number in counts.most_common()))
    return 0


def _files(given: list[str]) -> Iterator[Path]:
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
