"""The version that runs."""

from policyd.build_info import commit, version


def build() -> tuple[str, str]:
    """The version, and the commit that it was built from; "" where that is not known."""
    return version(), commit()
