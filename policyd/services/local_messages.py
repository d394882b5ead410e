"""LocalDecisionService's messages: checks what gateways send, and makes what policyd sends.

Settings are sent in pieces. Keys with equal settings share them in a piece, as they do in memory.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from policyd.engine.settings import KeyChange, KeySettings, ServerDefaults, Settings
from policyd.errors import InvalidArgument
from policyd.v1 import admin_pb2, policy_pb2
from policyd.v1 import local_pb2 as pb

PIECE = 500
"""Keys of one message. Making one takes 3 ms; between two, the event loop has a turn."""
_MAX_NAMES = 1000
"""Files or processes that a request names."""
_HOST = 256
_VERSION = 64
_FOLLOWER = re.compile("[0-9a-f]{12}")
_SPOOL = re.compile("[0-9a-f]{16}")
_HEX = re.compile("[0-9a-f]{0,32}")
_FILE = re.compile(r"[0-9a-z-]{1,57}\.jsonl")
_PROCESS = re.compile("[0-9a-z]{1,32}")
_MAX_NUMBER = 2**62
_MAX_LOST = 2**40
"""More decisions than a process can lose, and few enough that the sum of all stays in 64 bits."""
_Message = TypeVar("_Message", bound=Message)


@dataclass(frozen=True, slots=True)
class State:
    """Which settings are in force somewhere."""

    revision: int
    epoch: str


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a follower's first request says about it."""

    id: str
    host: str
    version: str


def parsed(kind: type[_Message], data: bytes) -> _Message:
    """The message in `data`. Raises InvalidArgument."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidArgument("the request is not a message of this method") from None


def greeting(request: pb.WatchKeysRequest) -> Greeting:
    """What the first request of a stream says about the follower. Raises InvalidArgument."""
    _check("follower_id", request.follower_id, _FOLLOWER, "12 digits of 0-9a-f")
    _check_text("host", request.host, _HOST)
    _check_text("version", request.version, _VERSION)
    return Greeting(request.follower_id, request.host, request.version)


def state(request: pb.WatchKeysRequest) -> State | None:
    """The settings in force at the follower; None: it has none. Raises InvalidArgument."""
    _check("database", request.database, _HEX, "up to 32 digits of 0-9a-f")
    _check("epoch", request.epoch, _HEX, "up to 32 digits of 0-9a-f")
    _check_number("revision", request.revision)
    return None if request.has_none else State(request.revision, request.epoch)


def check_resume(request: pb.ResumeSpool) -> None:
    """Raises InvalidArgument."""
    _check("resume.spool", request.spool, _SPOOL, "16 digits of 0-9a-f")
    _check("resume.database", request.database, _HEX, "up to 32 digits of 0-9a-f")
    _check_text("resume.host", request.host, _HOST)


def check_chunk(request: pb.SpoolChunk) -> None:
    """Raises InvalidArgument."""
    _check("chunk.file", request.file, _FILE, "the name of a file of the spool")
    _check_number("chunk.start", request.start)
    if not request.lines:
        raise InvalidArgument("chunk.lines is empty: send whole lines of the file")


def check_files(names: Iterable[str]) -> list[str]:
    """The names. Raises InvalidArgument."""
    return _names("forget.files", names, _FILE)


def check_processes(names: Iterable[str]) -> list[str]:
    """The names. Raises InvalidArgument."""
    return _names("lost_by.processes", names, _PROCESS)


def check_losses(lost: Mapping[str, int]) -> dict[str, int]:
    """The numbers. Raises InvalidArgument."""
    for number in lost.values():
        if not 0 <= number < _MAX_LOST:
            raise InvalidArgument(f"losses.lost takes a number from 0 to 2^40, not {number}")
    return {name: lost[name] for name in _names("losses.lost", lost, _PROCESS)}


def _names(field: str, names: Iterable[str], form: re.Pattern[str]) -> list[str]:
    found = list(names)
    if len(found) > _MAX_NAMES:
        raise InvalidArgument(f"{field} has at most {_MAX_NAMES} names, not {len(found)}")
    for name in found:
        _check(field, name, form, "names as the spool has them")
    return found


def _check(field: str, text: str, form: re.Pattern[str], words: str) -> None:
    if not form.fullmatch(text):
        raise InvalidArgument(f"{field} takes {words}, not {text[:64]!r}")


def _check_text(field: str, text: str, most: int) -> None:
    if len(text) > most or not text.isprintable():
        raise InvalidArgument(f"{field} has up to {most} characters that can be printed")


def _check_number(field: str, number: int) -> None:
    if not 0 <= number < _MAX_NUMBER:
        raise InvalidArgument(f"{field} takes a number from 0 to 2^62, not {number}")


def heartbeat(staleness: float, current: State, time: float, database: str) -> bytes:
    """A heartbeat, as bytes to send."""
    made = pb.Heartbeat(
        staleness_seconds=staleness,
        revision=current.revision,
        epoch=current.epoch,
        time=time,
        database=database,
    )
    return pb.WatchKeysResponse(heartbeat=made).SerializeToString()


def snapshot(pairs: Iterable[tuple[bytes, KeySettings]], *, put_back: bool) -> Iterator[bytes]:
    """All settings, as bytes to send, without complete()."""
    begin = pb.SnapshotBegin(put_back=put_back)
    yield pb.WatchKeysResponse(snapshot=begin).SerializeToString()
    rows = iter(pairs)
    while some := list(islice(rows, PIECE)):
        yield pb.WatchKeysResponse(keys=_piece(some, ())).SerializeToString()


def changes(changed: Iterable[KeyChange]) -> Iterator[bytes]:
    """Changes in pieces, as bytes to send, without complete()."""
    rows = iter(changed)
    while some := list(islice(rows, PIECE)):
        held = [(one.digest, one.settings) for one in some if one.settings is not None]
        gone = [one.digest for one in some if one.settings is None]
        yield pb.WatchKeysResponse(keys=_piece(held, gone)).SerializeToString()


def complete(database: str, current: State, defaults: ServerDefaults | None) -> bytes:
    """The end of a snapshot or of a change, as bytes to send."""
    made = pb.SettingsComplete(
        database=database,
        revision=current.revision,
        epoch=current.epoch,
        defaults=None if defaults is None else _defaults(defaults),
    )
    return pb.WatchKeysResponse(complete=made).SerializeToString()


def _piece(rows: Iterable[tuple[bytes, KeySettings]], gone: Iterable[bytes]) -> pb.KeyPiece:
    numbers: dict[tuple[Settings, tuple[str, ...]], int] = {}
    made: Any = pb.KeyPiece(gone=gone)
    add = made.keys.add
    for digest, one in rows:
        shared = numbers.setdefault((one.policies, one.accept), len(numbers))
        add(digest=digest, key_id=one.key_id, shared=shared, until=one.until)
    for policies, accept in numbers:
        made.shared.add(policies=_policies(policies), accept=accept)
    return made  # type: ignore[no-any-return]  # The stub of add() costs more to satisfy.


def _policies(settings: Settings) -> Iterator[pb.NamedPolicySetting]:
    for name, one in settings:
        setting = admin_pb2.PolicySetting(
            mode=policy_pb2.EnforceMode.ValueType(one.mode or 0),
            value=one.value,
            override_policy=admin_pb2.OverridePolicy.ValueType(one.override or 0),
        )
        yield pb.NamedPolicySetting(policy=name, setting=setting)


def _defaults(defaults: ServerDefaults) -> pb.DefaultsInForce:
    return pb.DefaultsInForce(
        policies=_policies(defaults.policies),
        end_user_headers=defaults.end_user_headers,
        end_user_callers=defaults.end_user_callers,
        revision=defaults.revision,
    )
