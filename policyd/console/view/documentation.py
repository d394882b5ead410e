"""Where the documentation of this policyd is, for the foot of each page."""

from functools import cache
from importlib import metadata

_LABEL = "Documentation"


@cache
def url() -> str:
    """The URL of this version's documentation, as the installed package names it; "" where it names
    none, like one that is installed from a checkout."""
    try:
        named = metadata.metadata("policyd").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    pairs = (one.partition(",") for one in named)
    found = next((place.strip() for label, _, place in pairs if label.strip() == _LABEL), "")
    return found if found.startswith(("https://", "http://")) else ""
