"""How the commands `health` ask a server of this machine whether it is ready, for the probes of
containers: an image needs no other program for that, and a server that asks its clients for
certificates is shown its own.
"""

import http.client
import ssl
import sys
from pathlib import Path

import click

from policyd.command.address import Address

_PATIENCE = 4.0
"""Seconds to wait for an answer. Containers' probes end after 5 s, and should say why by then."""

_FIX = "start the server, or give the address and the certificate that it was started with"


def report(address: Address, path: str, certificate: Path | None, key: Path | None) -> None:
    """Ask the server that listens at `address`, over TLS where it has a `certificate`.

    Prints its answer. Ends this process, with status 1 where the server is not well.
    """
    try:
        status, answer = _get(address, path, certificate, key)
    except (OSError, http.client.HTTPException) as problem:
        cause = getattr(problem, "strerror", None) or problem
        status, answer = 0, f"{address} does not answer: {cause}: {_FIX}"
    is_well = status == http.client.OK
    click.echo(answer, err=not is_well)
    sys.exit(not is_well)


def _get(
    address: Address, path: str, certificate: Path | None, key: Path | None
) -> tuple[int, str]:
    host, port = address.near
    if certificate is None:
        connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE)
    else:
        context = _context(certificate, key)
        connection = http.client.HTTPSConnection(host, port, timeout=_PATIENCE, context=context)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 16).decode("utf-8", "replace")
    finally:
        connection.close()


def _context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    # The connection stays on this machine, and the certificate is for another name.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(certificate, key)
    return context
