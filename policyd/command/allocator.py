"""What the C library's allocator does with memory that is not needed any more.

By default it gives a large block back at once, and keeps what lies below a block that is in use.
Systems whose library has no such settings go without.
"""

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""What mallopt(3) sets."""
_MOST = 2**30


def keep_memory() -> None:
    """Keep large blocks, for a process that needs the like again at once: to get the memory for a
    copy of a body from the system takes longer than to make the copy."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _MOST)
        library.mallopt(_TRIM_THRESHOLD, _MOST)


def give_memory_back() -> None:
    """Give the system what is not in use, wherever it lies."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
