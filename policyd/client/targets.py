"""Where a client finds policyd: HOST:PORT over gRPC, http://HOST:PORT or https://HOST:PORT over
HTTP. All addresses of one client are of the same kind."""

from collections.abc import Sequence

from policyd.command.http_origin import http_origin, scheme_of
from policyd.errors import SettingsError

Targets = str | Sequence[str]


def addresses(targets: Targets) -> tuple[str, ...]:
    """The addresses in `targets`, each once. Raises ValueError where there is none, or they are of
    several kinds."""
    words = targets.split(",") if isinstance(targets, str) else targets
    found = tuple(dict.fromkeys(word.strip() for word in words))
    if not found or "" in found:
        raise ValueError(f"the addresses of policyd are HOST:PORT,HOST:PORT, not {targets!r}")
    if len({scheme_of(one) for one in found}) > 1:
        raise ValueError(
            "the addresses of policyd are of one kind, all HOST:PORT for gRPC, all http:// or all "
            f"https://, not {targets!r}"
        )
    if is_http(found):
        return tuple(dict.fromkeys(map(_origin, found)))
    return found


def _origin(text: str) -> str:
    try:
        return http_origin(text, "the address of policyd").url
    except SettingsError as problem:
        raise ValueError(str(problem)) from None


def is_http(found: Sequence[str]) -> bool:
    """Whether these addresses are asked over HTTP."""
    return scheme_of(found[0]) != ""


def only_grpc(targets: Targets, what: str) -> tuple[str, ...]:
    """The addresses for `what`, which asks over gRPC only. Raises ValueError."""
    found = addresses(targets)
    if is_http(found):
        raise ValueError(f"{what} asks policyd over gRPC, at HOST:PORT, not {found[0]}")
    return found
