"""The memory of this process, for tests of what is given back to the system."""

import os
from pathlib import Path


def leave_holes() -> list[bytes]:
    """Free 15 MiB that the C library does not give back, as long as what is returned is kept."""
    blocks = [b"a" * (64 * 1024) for _ in range(256)]
    return blocks[::16]


def resident() -> int:
    """Bytes of memory that this process has from the system."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
