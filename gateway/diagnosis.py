"""Whether the gateway reaches policyd and, if not, why and what to do about it.

For most causes, a client says no more than that its peer is not available. So this module tries the
address step by step: its name, its port, and whether it speaks TLS.
"""

import asyncio
import socket
import ssl
from contextlib import suppress

from gateway.policyd_client import credentials_of, policyd_client, tls_context
from gateway.settings import Settings
from policyd.command.address import Address
from policyd.errors import NoDecision
from policyd.v1.policy_pb2 import CheckKeyRequest, CheckKeyResponse

_PATIENCE = 3.0
"""Seconds for a connection, and for its TLS handshake."""
_LOOK = 30.0
"""Seconds to read the settings of all keys."""
_REFUSED = "(UNAUTHENTICATED:"
"""What a client's error holds where policyd refused the caller's token."""


async def ask(settings: Settings, key: str = "") -> CheckKeyResponse:
    """Ask policyd, as the gateway does, whether a key is in force. Raises NoDecision, with the
    cause and the fix, and SettingsError."""
    try:
        return await (_look(settings, key) if settings.is_local else _check_key(settings, key))
    except NoDecision as problem:
        raise NoDecision(await _reason(settings, problem), is_outage=problem.is_outage) from None


async def _check_key(settings: Settings, key: str) -> CheckKeyResponse:
    client = policyd_client(settings)
    try:
        return await client.check_key(CheckKeyRequest(key=key))
    finally:
        await client.close()


async def _look(settings: Settings, key: str) -> CheckKeyResponse:
    """The same for a gateway that decides by itself. Only such a gateway loads what this needs."""
    from policyd.client.local_look import look

    asked = (settings.policyd, settings.policyd_token, credentials_of(settings))
    found = await look(*asked, seconds=_LOOK, key=key, spool=settings.spool)
    return CheckKeyResponse(in_force=found.in_force, revision=found.revision)


async def _reason(settings: Settings, problem: NoDecision) -> str:
    if _REFUSED in str(problem):
        given = "another token than" if settings.policyd_token else "no token, but"
        return (
            f"policyd at {settings.policyd} was shown {given} the one that it asks for: give "
            "--policyd-token-file the file that policyd has as --caller-token-file"
        )
    if not problem.is_outage:
        return str(problem)
    found = [await _diagnose(one, settings) for one in settings.policyd_addresses]
    return "; ".join(dict.fromkeys(found))


async def _diagnose(address: Address, settings: Settings) -> str:
    """Why policyd does not answer at an address."""
    try:
        await _connect(address)
    except socket.gaierror:
        return f"the name {address.host} stands for no address: correct --policyd"
    except ConnectionRefusedError:
        return (
            f"no program listens at {address}: start policyd there, or give --policyd the address "
            f"of its {_listener(settings)}"
        )
    except TimeoutError:
        return f"{address} does not answer: check --policyd, and the firewalls on the way"
    except OSError as error:
        return f"{address} cannot be reached ({error.strerror}): check --policyd"
    if settings.asks_over_tls:
        return await _try_tls(address, settings)
    if await _speaks_tls(address):
        way = f"https://{address} to --policyd" if settings.asks_over_http else "--policyd-tls"
        return (
            f"{address} speaks TLS: give {way}, and --policyd-ca the authority of its certificate"
        )
    return _silent(address, settings)


async def _try_tls(address: Address, settings: Settings) -> str:
    """What is wrong with TLS to an address that the gateway is to ask over TLS."""
    try:
        await _connect(address, _context(settings), is_read=True)
    except ssl.SSLCertVerificationError as error:
        return (
            f"the certificate of {address} is not trusted ({error.verify_message}): give "
            "--policyd-ca its authority, and --policyd a name that stands in it"
        )
    except ssl.SSLError as error:
        if "CERTIFICATE" in (error.reason or ""):
            return (
                f"{address} does not take the gateway without a certificate of its --tls-client-ca "
                f"({error.reason}): give --policyd-cert and --policyd-key"
            )
        return _no_tls(address, settings)
    except (OSError, EOFError):
        return _no_tls(address, settings)
    return _silent(address, settings)


def _no_tls(address: Address, settings: Settings) -> str:
    way = (
        f"give http://{address} to --policyd"
        if settings.asks_over_http
        else "leave out --policyd-tls"
    )
    return f"{address} speaks no TLS: {way}, or start policyd with --tls-cert and --tls-key"


def _listener(settings: Settings) -> str:
    return "--http" if settings.asks_over_http else "--grpc"


def _silent(address: Address, settings: Settings) -> str:
    return (
        f"{address} takes connections, and did not answer as policyd does within "
        f"{settings.policy_timeout:g} s: check that --policyd is the address of its "
        f"{_listener(settings)}, and what its log says"
    )


async def _speaks_tls(address: Address) -> bool:
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError, EOFError):
        await _connect(address, unchecked)
        return True
    return False


def _context(settings: Settings) -> ssl.SSLContext:
    context = tls_context(settings)
    if not settings.asks_over_http:
        context.set_alpn_protocols(["h2"])
    return context


async def _connect(
    address: Address, context: ssl.SSLContext | None = None, *, is_read: bool = False
) -> None:
    """Connect; with `is_read`, also read what the server sends first: with TLS 1.3, only then does
    it say that it wants a certificate. Raises OSError and EOFError."""
    async with asyncio.timeout(_PATIENCE):
        reader, writer = await asyncio.open_connection(*address, ssl=context)
    try:
        if is_read:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await reader.readexactly(1)
    finally:
        # Without an orderly end: TLS waits half a minute for a server that does not answer it.
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()
