"""The version that runs."""

from importlib.metadata import version


def build() -> tuple[str, str]:
    """The version, and the commit that it was built from; "" where that is not known."""
    return version("policyd"), ""
