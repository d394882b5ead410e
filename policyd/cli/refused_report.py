"""The report of `policyd logs refused`: where requests without an API key in force came from."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from policyd.cli.terminal import printable
from policyd.decision_log.refused_key import RefusedKey
from policyd.store import RefusedSource

_UNKNOWN = "(not known)"
_TEXTS = RefusedKey.__struct_fields__[2:]


def as_dict(sources: Sequence[RefusedSource], samples: Sequence[RefusedKey]) -> dict[str, Any]:
    """The report as JSON values."""
    return {
        "sources": [
            {"source": one.source, "last": one.last.isoformat(), "requests": one.counts.total}
            | asdict(one.counts)
            for one in sources
        ],
        "samples": [
            msgspec.structs.asdict(one)
            | {"time": one.time.isoformat(timespec="milliseconds"), "reason": _reason(one)}
            for one in samples
        ],
    }


def as_text(sources: Sequence[RefusedSource], samples: Sequence[RefusedKey]) -> str:
    """The report for people."""
    if not sources:
        return "All requests of this period had an API key in force."
    lines = [f"{'SOURCE':42}{'REQUESTS':>10}{'NO KEY':>10}{'INVALID':>10}{'TWO KEYS':>10}  LAST"]
    for one in sources:
        numbers = (one.counts.total, *asdict(one.counts).values())
        cells = "".join(f"{number:>10}" for number in numbers)
        lines.append(f"{one.source or _UNKNOWN:42}{cells}  {one.last:%Y-%m-%d %H:%M}")
    lines += ["", "For example:"] if samples else []
    for sample in samples:
        texts = (printable(getattr(sample, name)) for name in _TEXTS)
        told = "  ".join(text for text in texts if text)
        lines.append(f"  {sample.time:%Y-%m-%d %H:%M:%S}  {_reason(sample):11}  {told}")
    return "\n".join(lines)


def _reason(sample: RefusedKey) -> str:
    return sample.reason.name.lower()
