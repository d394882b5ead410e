"""--metrics among the settings of both servers."""

import pytest

from gateway.settings import Settings
from policyd.command.address import Address
from policyd.errors import SettingsError
from policyd.settings import ServerSettings

BEYOND = Address("0.0.0.0", 9464)  # noqa: S104  # it is refused


@pytest.mark.parametrize("kind", [ServerSettings, Settings])
def test_beyond_this_machine(kind: type[ServerSettings | Settings]) -> None:
    """Metrics are served to other machines by TLS only, unless something else protects them."""
    with pytest.raises(SettingsError, match=r"--metrics 0\.0\.0\.0:9464 can be reached .*--tls"):
        kind(metrics=BEYOND)
    assert kind(metrics=BEYOND, insecure=True).metrics == BEYOND
    assert kind(metrics=Address("127.0.0.1", 9464)).metrics


def test_off_by_default() -> None:
    """Nothing is served unless it is asked for."""
    assert ServerSettings().metrics is None
    assert Settings().metrics is None
