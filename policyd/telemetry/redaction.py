"""Takes secrets out of log lines, whatever put them there.

No line of ours holds one. But a line may quote what a library, a database or a client says, and a
traceback ends with such a text.
"""

import re

_HIDDEN = "***"
_SECRETS = re.compile(
    # The password of a URL. One that holds @ ends at the last of them. A port is no password, even
    # with an @ in the path after it. Bounded, so that many of them take linear time.
    r"(?<=://)(?P<user>[^\s/:@\"']*):(?!\d{1,5}/)[^\s\"']{0,256}@"
    # A policyd key, and the keys of upstreams, whose beginning tells what they are.
    r"|up-[0-9A-Za-z]{48}|\bup-[0-9A-Za-z]{16,}|(?<![0-9A-Za-z])sk-[0-9A-Za-z_-]{16,}"
    # What stands after the scheme of an Authorization header.
    r"|\b(?P<scheme>[Bb]earer|BEARER|[Bb]asic)\s+[0-9A-Za-z._~+/=-]{6,}"
    # A password among the parameters of a PostgreSQL connection.
    r"|(?i:password)=(?:'[^']*'|[^\s&;,'\")]+)"
)
_SIGNS = ("://", "up-", "sk-", "earer", "EARER", "asic", "assword=", "ASSWORD=")
"""Each text with a secret holds one of these. Looking for them is much quicker."""


def redacted(text: str) -> str:
    """The text with each secret in it replaced by `***`."""
    if any(sign in text for sign in _SIGNS):
        return _SECRETS.sub(_replacement, text)
    return text


def _replacement(found: re.Match[str]) -> str:
    if found["user"] is not None:
        return f"{found['user']}:{_HIDDEN}@"
    if found["scheme"]:
        return f"{found['scheme']} {_HIDDEN}"
    name, equals, _ = found[0].partition("=")
    return name + equals + _HIDDEN if equals and name.lower() == "password" else _HIDDEN
