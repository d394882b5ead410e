"""The system calls of the spool, all in one place.

A test replaces this System with its own, which ends the process between any two calls, or has one
of them fail.
"""

import fcntl
import os


class System:
    """The system calls that the spool uses."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    dup = staticmethod(os.dup)
    flock = staticmethod(fcntl.flock)
    fstat = staticmethod(os.fstat)
    stat = staticmethod(os.stat)
    write = staticmethod(os.write)
    pwrite = staticmethod(os.pwrite)
    pread = staticmethod(os.pread)
    ftruncate = staticmethod(os.ftruncate)
    unlink = staticmethod(os.unlink)
    fsync = staticmethod(os.fsync)
    fdatasync = staticmethod(os.fdatasync)

    @staticmethod
    def listdir(folder: int) -> list[str]:
        """The names in a folder."""
        return os.listdir(folder)
