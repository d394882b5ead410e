"""The upstream's URL: what it may be, and the header that its API key goes in."""

from yarl import URL

from policyd.engine import endpoints
from policyd.errors import SettingsError

KEY_HEADERS = ("Authorization", "api-key", "x-api-key", "x-goog-api-key")
"""The headers that an upstream may want its API key in."""
# Any other upstream wants its key in Authorization.
_KEY_HEADERS_BY_HOST = {
    "openai.azure.com": "api-key",
    "openai.azure.us": "api-key",
    "openai.azure.cn": "api-key",
    "cognitiveservices.azure.com": "api-key",
    "cognitiveservices.azure.us": "api-key",
    "cognitiveservices.azure.cn": "api-key",
    "services.ai.azure.com": "api-key",
    "api.anthropic.com": "x-api-key",
    "generativelanguage.googleapis.com": "x-goog-api-key",
}


def key_header_of(upstream: str) -> str:
    """The header that the upstream at this URL is known to want its API key in."""
    host = "." + (URL(upstream).raw_host or "").lower().rstrip(".")
    known = (name for of, name in _KEY_HEADERS_BY_HOST.items() if host.endswith("." + of))
    return next(known, "Authorization")


def check_upstream(text: str) -> None:
    """Raises SettingsError where requests cannot be forwarded to this URL."""
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise SettingsError(f"--upstream takes an http:// or https:// URL, not {text!r}")
    if url.raw_user is not None or url.raw_password is not None:
        raise SettingsError("--upstream must hold no user or password: use --upstream-api-key")
    if url.raw_query_string or url.raw_fragment:
        raise SettingsError(f"--upstream must end with its path, so {text!r} may hold no ? or #")
    prefix = url.raw_path.rstrip("/")
    plain = endpoints.canonical_path(prefix)
    if prefix and plain.lower() != prefix.lower():
        raise SettingsError(
            f"--upstream's path {prefix!r} can be read in more than one way: write it in its plain "
            f"form, {plain!r}"
        )
