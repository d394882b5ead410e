"""Why an address cannot be listened on, and what to do: by the kind of the system's error."""

import errno
import os

from policyd.errors import CannotListen

_UNKNOWN = (
    "another program has the port, or it is no address of this machine",
    "give {flag} another one; port 0 takes a free port",
)
_NO_NAME = (
    "the name stands for no address",
    "check how it is written, or give {flag} an address such as 127.0.0.1",
)
_NO_FILES = (
    "no more files may be open",
    "raise the limit (ulimit -n; LimitNOFILE= of a systemd unit)",
)
_REASONS = {
    errno.EADDRINUSE: (
        "another program has the port",
        "stop that program (ss -ltnp lists who listens), or give {flag} another port; port 0 takes "
        "a free one",
    ),
    errno.EACCES: (
        "this user may not listen at this port",
        "give {flag} a port from 1024 on, or the program the right to lower ones "
        "(AmbientCapabilities=CAP_NET_BIND_SERVICE in a systemd unit)",
    ),
    errno.EPERM: (
        "the system forbids it",
        "allow it in what confines this program, such as seccomp, SELinux or AppArmor",
    ),
    errno.EADDRNOTAVAIL: (
        "it is no address of this machine",
        "give {flag} one that `ip address` lists, 127.0.0.1 for this machine alone, or 0.0.0.0 for "
        "all of them",
    ),
    errno.EAFNOSUPPORT: (
        "this system does not speak that kind of address, as where IPv6 is turned off",
        "give {flag} an IPv4 address such as 127.0.0.1",
    ),
    errno.EMFILE: _NO_FILES,
    errno.ENFILE: _NO_FILES,
}


def cannot_listen(address: object, flag: str, problem: OSError | None = None) -> CannotListen:
    """The error for an `address` that the setting `flag` names, with its cause and its fix.

    `problem` is the system's error; None where it is not known, as gRPC gives none.
    """
    number = problem.errno if problem else None
    if number is None:
        cause, fix = _UNKNOWN
    elif number < 0:  # getaddrinfo()'s, of whatever class Python makes it.
        cause, fix = _NO_NAME
    else:
        other = (os.strerror(number), "give {flag} another address")
        cause, fix = _REASONS.get(number, other)
    return CannotListen(
        f"{flag} {address} cannot be listened on: {cause}. To fix it, {fix.format(flag=flag)}"
    )
