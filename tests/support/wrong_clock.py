"""A machine whose clock is wrong, as the Python programs on it see it."""

from pathlib import Path

_SITE = '''
import datetime
import time

AHEAD = {seconds}
_time, _time_ns, _real = time.time, time.time_ns, datetime.datetime


class _Kind(type(_real)):
    def __instancecheck__(cls, value):
        return isinstance(value, _real)

    def __subclasscheck__(cls, kind):
        return issubclass(kind, _real)


class _Datetime(_real, metaclass=_Kind):
    """Makes moments of the real kind, which drivers know."""

    def __new__(cls, *given, **named):
        return _real(*given, **named)

    @classmethod
    def now(cls, tz=None):
        return _real.fromtimestamp(time.time(), tz)


time.time = lambda: _time() + AHEAD
time.time_ns = lambda: _time_ns() + int(AHEAD * 10**9)
datetime.datetime = _Datetime
'''


def wrong_clock(folder: Path, seconds: float) -> dict[str, str]:
    """The environment of programs, and all that they start, whose clock is so far ahead."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITE.format(seconds=seconds))
    return {"PYTHONPATH": str(folder)}
