"""What a disk has when the power fails: only what was synced, as a program's system calls tell.

strace writes down each call that changes a file or syncs one, with its time. disk_at() plays them
back up to a moment: a file has what was written before its last sync began, a folder the names it
had then, and of what came later nothing, or only the first so many calls (`random`).

It shows which syncs a program leaves out, and in which order it relies on them, as POSIX has it,
which is stricter than most file systems. It does not show a disk that lies about a sync, a file
system's own faults, or writes that reach a file through a mapping.
"""

import os
import random as chance
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = (
    *("openat", "write", "pwrite64", "ftruncate", "fsync", "fdatasync"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat"),
)
_LINE = re.compile(r"(\d+\.\d+) (\w+)\((.*)\) += (-?\d+)[^=]* <(\d+\.\d+)>$")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_PATH = re.compile(r"<((?:\\x[0-9a-f]{2})+)>")


def strace(folder: Path, program: str) -> tuple[str, ...]:
    """What to put before a command, so that its calls are written to files in `folder`."""
    return (
        *(program, "-ff", "-ttt", "-T", "-y", "-xx", "-s", str(2**26), "--seccomp-bpf"),
        *(
            "-qq",
            "-e",
            f"trace={','.join(CALLS)}",
            "-e",
            "signal=none",
            "-o",
            str(folder / "trace"),
        ),
    )


@dataclass
class File:
    """A file or a folder: what the disk has of it, and what has not been synced yet."""

    disk: Any
    unsynced: list[tuple[Any, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Call:
    """One system call that succeeded."""

    begun: float
    ended: float
    name: str
    paths: list[str]
    text: bytes
    numbers: list[int]
    flags: str


def calls(folder: Path, root: Path) -> list[Call]:
    """The calls that concern what is below `root`, in the order of their beginnings."""
    found = [call for file in folder.glob("trace.*") for call in _calls(file, str(root))]
    return sorted(found, key=lambda call: call.begun)


def _calls(file: Path, root: str) -> Iterator[Call]:
    needle = root.encode().hex(" ").replace(" ", "\\x")
    with file.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            match = _LINE.match(line) if needle in line else None
            if match is None or match[4].startswith("-"):
                continue
            begun, name, given = float(match[1]), match[2], match[3]
            texts = [_bytes(one) for one in _TEXT.findall(given)]
            places = [_bytes(one).decode() for one in _PATH.findall(given)]
            paths = places[:1]
            if name not in ("write", "pwrite64", "ftruncate", "fsync", "fdatasync"):
                bases = places or [""]
                paths = [os.path.join(bases[0], one.decode()) for one in texts]
            numbers = [int(one) for one in re.findall(r", (-?\d+)(?=,|$)", given)]
            if name == "write":
                numbers = [int(match[4])]
            written = texts[-1][: int(match[4])] if texts else b""
            if "(deleted)" not in given and paths and paths[0].startswith(root):
                yield Call(begun, begun + float(match[5]), name, paths, written, numbers, given)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def disk_at(moment: float, found: list[Call], root: Path, to: Path, random: bool) -> None:
    """Make in `to` what the disk has of `root` after a power cut at this moment."""
    disk = _Disk(str(root))
    syncs: list[tuple[float, File, int]] = []
    for call in found:
        if call.begun > moment:
            break
        disk.settle(syncs, call.begun)
        disk.do(call, syncs)
    disk.settle(syncs, moment)
    disk.write_out(to, chance.Random(moment) if random else None)


class _Disk:
    def __init__(self, root: str) -> None:
        self._root = root
        self._top = File({})
        self._files: dict[str, File] = {root: self._top}

    def do(self, call: Call, syncs: list[tuple[float, File, int]]) -> None:
        path = call.paths[0]
        if call.name == "openat":
            if "O_CREAT" in call.flags and path not in self._files:
                self._name(path, File(b""))
        elif call.name.startswith("mkdir"):
            self._name(path, File({}))
        elif call.name.startswith("unlink"):
            self._unname(path)
        elif call.name.startswith("rename"):
            self._name(call.paths[1], self._files[path])
            self._unname(path)
        elif (file := self._files.get(path)) is None:
            return
        elif call.name in ("fsync", "fdatasync"):
            syncs.append((call.ended, file, len(file.unsynced)))
        elif call.name == "ftruncate":
            file.unsynced.append(("size", call.numbers[-1]))
        else:
            at = call.numbers[-1] if call.name == "pwrite64" else None
            file.unsynced.append(("write", at, call.text))

    def settle(self, syncs: list[tuple[float, File, int]], now: float) -> None:
        """Have the disk take what was written before the syncs that have ended by now."""
        # One at a time: each changes what later ones of the same file still have to do.
        while ended_by_now := [n for n, (ended, *_) in enumerate(syncs) if ended <= now]:
            _, file, count = syncs.pop(ended_by_now[0])
            file.disk = _applied(file.disk, file.unsynced[:count])
            del file.unsynced[:count]
            for number, (ended, other, left) in enumerate(syncs):
                if other is file:
                    syncs[number] = (ended, other, max(left - count, 0))

    def write_out(self, to: Path, some: chance.Random | None) -> None:
        self._write(self._top, to, some)

    def _write(self, file: File, to: Path, some: chance.Random | None) -> None:
        kept = some.randint(0, len(file.unsynced)) if some else 0
        content = _applied(file.disk, file.unsynced[:kept])
        if isinstance(content, bytes):
            to.write_bytes(content)
            to.chmod(0o600)
            return
        to.mkdir(mode=0o700, exist_ok=True)
        for name, inner in content.items():
            self._write(inner, to / name, some)

    def _name(self, path: str, file: File) -> None:
        self._files[path] = file
        folder, name = os.path.split(path)
        self._files[folder].unsynced.append(("name", name, file))

    def _unname(self, path: str) -> None:
        self._files.pop(path, None)
        folder, name = os.path.split(path)
        self._files[folder].unsynced.append(("unname", name))


def _applied(content: Any, changes: list[tuple[Any, ...]]) -> Any:
    if isinstance(content, dict):
        names = dict(content)
        for kind, name, *file in changes:
            names.pop(name, None)
            if kind == "name":
                names[name] = file[0]
        return names
    data = bytearray(content)
    for kind, at, *text in changes:
        if kind == "size":
            data = data[:at] + bytes(max(at - len(data), 0))
        else:
            start = len(data) if at is None else at
            data += bytes(max(start - len(data), 0))
            data[start : start + len(text[0])] = text[0]
    return bytes(data)
