"""A container image without a container engine: the steps of a Containerfile, read from it and run.

A stage's root file system is this machine's, as the lower layer of an overlay, in the place of the
base image: Debian with a Python. The stage's own files are the upper layer. Each step runs in a
mount namespace of its own, so that nothing stays mounted. What is found so: whether the steps work,
and whether what they make runs. What is not: whether the base image has all that they need.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_MOUNT = """
set -e
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount --rbind /dev "$1/root/dev"
mount -t proc proc "$1/root/proc"
mount -t tmpfs tmpfs "$1/root/tmp"
"""
_BUILD = 'exec chroot "$1/root" sh -ec "$2"'
_RUN = """
mkdir -p "$1/data"
chown --reference="$1/root$3" "$1/data"
chmod --reference="$1/root$3" "$1/data"
mount --bind "$1/data" "$1/root$3"
mount -o remount,ro "$1/root"
root="$1/root" user="${2%:*}" group="${2#*:}" folder="$3"
shift 3
exec chroot "$root" setpriv --reuid="$user" --regid="$group" --clear-groups \
    --no-new-privs --bounding-set=-all --inh-caps=-all env --chdir="$folder" -i "$@"
"""


@dataclass
class Stage:
    """A stage: its steps, as (keyword, value), and what ENV and ARG have set by its end."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def values(self, keyword: str) -> list[str]:
        """What the steps with this keyword say."""
        return [value for one, value in self.steps if one == keyword]


def read(file: Path) -> list[Stage]:
    """The stages of a Containerfile, of the simple form that ours has."""
    stages: list[Stage] = []
    before: dict[str, str] = {}
    for keyword, value in _instructions(file.read_text()):
        if keyword == "FROM":
            base, _, name = _filled(value, before).partition(" AS ")
            stages.append(Stage(name, base))
        elif stages:
            stages[-1].steps.append((keyword, value))
        else:
            before |= _assigned(value)
    return stages


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    kept = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in kept.replace("\\\n", " ").splitlines():
        keyword, _, value = line.strip().partition(" ")
        if keyword:
            yield keyword, value.strip()


def _assigned(value: str) -> dict[str, str]:
    pairs = (word.partition("=") for word in shlex.split(value))
    return {name: given for name, _, given in pairs}


def _filled(text: str, variables: dict[str, str]) -> str:
    return _VARIABLE.sub(lambda found: variables.get(found[1], ""), text)


class Image:
    """The image of the last stage, built in `folder` from the files of `context`."""

    def __init__(self, file: Path, context: Path, folder: Path, python: Path, **args: str) -> None:
        self._context = context
        self._folder = folder
        self._python = python
        self._args = args
        for number, stage in enumerate(read(file)):
            self.layer = folder / (stage.name or str(number))
            self._build(stage)
        self.user = stage.values("USER")[-1]
        self.data = stage.values("VOLUME")[-1]
        self.command: list[str] = json.loads(stage.values("CMD")[-1])

    def _build(self, stage: Stage) -> None:
        os.umask(0o022)  # As a container engine's, whatever commands ran in this process.
        for part in ("upper", "work", "root"):
            (self.layer / part).mkdir(parents=True)
        self.environment = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        self._arguments: dict[str, str] = {}
        self._at = "/"
        # The base image's Python, which its other users can reach, too.
        starts = self.layer / "upper/usr/local/bin/python"
        starts.parent.mkdir(parents=True)
        starts.write_text(f'#!/bin/sh\nexec {self._python} "$@"\n')
        starts.chmod(0o755)
        self._step("chmod 755 /root")
        for keyword, value in stage.steps:
            self._follow(keyword, value)

    def _follow(self, keyword: str, value: str) -> None:
        match keyword:
            case "ENV":
                self.environment |= _assigned(value)
            case "ARG":
                for name, default in _assigned(value).items():
                    self._arguments[name] = self._args.get(name, default)
            case "WORKDIR":
                self._at = value
                self._step(f"mkdir -p {value}")
            case "COPY":
                self._copy(value)
            case "RUN":
                self._step(value)

    def _step(self, command: str) -> None:
        settings = {**self.environment, **self._arguments}
        exports = "".join(f"export {name}={shlex.quote(settings[name])}\n" for name in settings)
        script = f"{exports}mkdir -p {self._at}; cd {self._at}\n{command}"
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", _MOUNT + _BUILD, "sh", self.layer, script],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, command + done.stdout + done.stderr

    def _copy(self, value: str) -> None:
        words = shlex.split(value)
        options = dict(word[2:].split("=") for word in words if word.startswith("--"))
        *sources, target = [word for word in words if not word.startswith("--")]
        stage = options.get("from")
        origin = self._folder / stage / "upper" if stage else self._context
        owner = options.get("chown", "0:0")
        into = self.layer / "upper" / Path(self._at, target).relative_to("/")
        for source in sources:
            path = origin / source.lstrip("/")
            if path.is_dir():  # What is in it, and not the folder itself.
                ignored = None if stage else shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, into, symlinks=True, ignore=ignored, dirs_exist_ok=True)
                made = [one for one in into.iterdir() if (path / one.name).exists()]
            else:
                place = into / path.name if target.endswith("/") else into
                place.parent.mkdir(parents=True, exist_ok=True)
                made = [Path(shutil.copy(path, place))]
            subprocess.run(["chown", "--recursive", owner, *made], check=True)

    def running(self, *command: str, **environment: str) -> list[str]:
        """The command line that runs `command` as a container of this image would be, with a
        read-only root: as its user, without privileges, and with its data in `folder`/data."""
        settings = self.environment | environment
        given = [f"{name}={value}" for name, value in settings.items()]
        script = _MOUNT + _RUN
        where = [str(shutil.which("unshare")), "--mount", "sh", "-c", script, "sh", str(self.layer)]
        return [*where, self.user, self.data, *given, *command]

    @property
    def megabytes(self) -> float:
        """What the last stage adds to the base image."""
        added = (one for one in (self.layer / "upper").rglob("*") if one.is_file())
        return sum(one.lstat().st_size for one in added) / 1e6


def base_python() -> Path:
    """A Python of this machine: the one that runs the tests, outside its environment."""
    return Path(sys.base_prefix) / f"bin/python3.{sys.version_info.minor}"
