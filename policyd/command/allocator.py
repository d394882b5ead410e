"""What the C library's allocator does with memory that is not needed any more.

By default it gives a large block back at once, and keeps what lies below a block that is in use.
Systems whose library has no such settings go without.
"""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""What mallopt(3) sets."""
_MOST = 2**30
"""Bytes of a block, or of free memory, up to which it is kept."""


def keep_memory() -> None:
    """Keep large blocks that are freed, in a process that soon needs others like them: getting the
    memory for a copy of a body from the system takes longer than making the copy."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _MOST)
        library.mallopt(_TRIM_THRESHOLD, _MOST)


def give_memory_back() -> None:
    """Give the system what is not in use, wherever it lies."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
