"""Settings of a gateway that decides by itself: they fit together, or the error says why."""

from pathlib import Path
from typing import Any

import pytest

from gateway.settings import Settings
from policyd.errors import SettingsError

WHOLE: dict[str, Any] = {"decide": "local", "spool": Path("spool"), "policyd_token": "t" * 16}


def test_they_fit_together() -> None:
    """A gateway that decides by itself has time to carry its last decisions."""
    assert Settings(**WHOLE).is_local
    assert Settings(**WHOLE).ending > Settings().ending


@pytest.mark.parametrize(
    ("missing", "fix"), [("spool", "--spool"), ("policyd_token", "--local-token-file")]
)
def test_what_is_missing(missing: str, fix: str) -> None:
    """The error names the setting, and where what it holds comes from."""
    given = {name: value for name, value in WHOLE.items() if name != missing}
    with pytest.raises(SettingsError, match=fix):
        Settings(**given)


def test_a_spool_without_use() -> None:
    """A gateway that asks policyd has no spool."""
    with pytest.raises(SettingsError, match="--decide local"):
        Settings(spool=Path("spool"))


def test_where_policyd_is_followed() -> None:
    """A gateway that decides by itself follows policyd over gRPC, and refuses an address of HTTP
    with an error that says so."""
    for address in ("http://policyd:8082", "https://policyd:8082"):
        with pytest.raises(SettingsError, match="--decide local follows policyd over gRPC"):
            Settings(**WHOLE, policyd=address)
