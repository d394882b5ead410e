"""Where a command administers: a database, or a running server by its AdminService."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from policyd.cli import options
from policyd.cli.administration import Administrator, OfStore
from policyd.cli.options import OPTIONS, option
from policyd.command.address import Address
from policyd.command.process import silence_grpc
from policyd.command.tls_files import check_authorities, check_pair
from policyd.errors import SettingsError
from policyd.settings import ServerSettings

_Command = TypeVar("_Command", bound=Callable[..., Any])
_file = click.Path(path_type=Path, dir_okay=False)


@dataclass(frozen=True, slots=True)
class Place:
    """The database or server that the options of administered() name."""

    database_url: str
    server: str | None
    token_file: Path | None
    tls: bool
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    insecure: bool

    @contextmanager
    def opened(self, *, create: bool = False) -> Iterator[Administrator]:
        """The administrator of this place. With `create`, a database that is missing is made.

        Raises SettingsError or StoreUnavailable.
        """
        if self.server is None:
            with options.opened(self.database_url, create=create) as store:
                yield OfStore(store, options.actor())
            return
        token = self._token()
        silence_grpc()
        # Imported late: a command that opens a database needs no gRPC.
        from policyd.cli.remote import OfServer
        from policyd.client import tls_credentials
        from policyd.client.admin import AdminClient

        credentials = None
        if self.tls or self.tls_ca:
            self._check_tls()
            files = (self.tls_ca, self.tls_key, self.tls_cert)
            credentials = tls_credentials(*(path.read_bytes() if path else None for path in files))
        with AdminClient(self.server, token, credentials=credentials) as client:
            yield OfServer(client)

    def _token(self) -> str:
        assert self.server is not None
        at = Address.parse(self.server, "--server")
        if not (at.is_loopback or self.tls or self.tls_ca or self.insecure):
            raise SettingsError(
                f"--server {at} is another machine, and would get the administration token in "
                "the clear: give --tls or --tls-ca, or --insecure if something else protects it"
            )
        if self.token_file is None:
            raise SettingsError(
                "--server needs --token-file: policyd serve names the file at its start"
            )
        from policyd.keys import tokens

        return tokens.load(self.token_file, "--token-file")

    def _check_tls(self) -> None:
        if self.tls_ca:
            check_authorities(self.tls_ca, "--tls-ca")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingsError("--tls-cert and --tls-key go together: give both or neither")
        if self.tls_cert and self.tls_key:
            check_pair(self.tls_cert, self.tls_key)


_SERVER = [
    option(
        "--server",
        metavar="HOST:PORT",
        is_eager=True,  # Before --database-url, which then means nothing.
        help="A running policyd's --admin address, to work there instead of on the database.",
    ),
    option("--token-file", type=_file, help="The administration token of --server."),
    option("--tls", is_flag=True, help="Ask --server over TLS, by the system's authorities."),
    option("--tls-ca", type=_file, help="PEM authorities of --server's certificate; with TLS."),
    OPTIONS.setting(ServerSettings, "tls_cert", help="PEM certificate to show to --server."),
    OPTIONS.setting(ServerSettings, "tls_key", help="PEM private key of that certificate."),
    OPTIONS.setting(
        ServerSettings, "insecure", help="Send the token to another machine without TLS."
    ),
]
_NAMES = ("server", "token_file", "tls", "tls_ca", "tls_cert", "tls_key", "insecure")


def administered(command: _Command) -> _Command:
    """The options of a command that works on a database or a server: it is given their `place`."""

    @functools.wraps(command)
    def called(database_url: str, **given: Any) -> Any:
        place = Place(database_url, **{name: given.pop(name) for name in _NAMES})
        return command(place=place, **given)

    with_options: Any = called
    for add in reversed(_SERVER):
        with_options = add(with_options)
    made: _Command = options.OPTIONS.config(options.database_url(with_options))
    return made
