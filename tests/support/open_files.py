"""What this process has open, to see that nothing is left behind."""

import gc
import os
import shutil
from pathlib import Path


def open_files() -> int:
    """How many files and sockets are open, without those that other tests have left to the
    collector."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def delete_in_use(folder: Path) -> None:
    """Delete a folder in which a server may make files meanwhile."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
