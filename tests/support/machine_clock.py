"""A wrong clock: a library that a program is started with changes the time that it sees."""

import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

from tests.support.requirements import beyond_pip, missing

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long offset(void) { return atol(getenv("TEST_CLOCK_OFFSET")); }

int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, at);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) at->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


def wrong_machine_clock(folder: Path, by: timedelta) -> dict[str, str]:
    """The environment of a program whose clock is wrong by so much, and of its children."""
    beyond_pip("a C compiler")
    if not shutil.which("cc"):
        missing("a C compiler is missing (Debian: apt-get install gcc libc6-dev)")
    source, library = folder / "wrong_clock.c", folder / "wrong_clock.so"
    source.write_text(_SOURCE)
    built = ("cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl")
    subprocess.run(built, check=True, capture_output=True)
    return {"LD_PRELOAD": str(library), "TEST_CLOCK_OFFSET": str(int(by.total_seconds()))}
