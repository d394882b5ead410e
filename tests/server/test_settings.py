"""The settings that a server starts with."""

from pathlib import Path
from typing import Any

import pytest

from policyd.errors import SettingsError
from tests.support.running import ANYWHERE, settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grpc": ANYWHERE}, "--grpc .* can be reached from other machines"),
        ({"admin": ANYWHERE}, "--admin .* can be reached from other machines"),
        ({"tls_cert": Path("x")}, "go together"),
        ({"tls_client_ca": Path("x")}, "needs --tls-cert"),
        (
            {"local_token_file": Path("x"), "max_message": 2**20},
            "--local-token-file needs a --max-message of at least",
        ),
        ({"log_retention": 1e6}, "--log-retention takes days, up to 36500"),
        ({"log_retention": float("nan")}, "--log-retention takes days"),
        ({"end_user_headers": ("x-user",)}, "--end-user-callers go together"),
        ({"end_user_callers": ("grpc",)}, "--end-user-callers go together"),
        ({"end_user_callers": ("all",)}, "--end-user-callers takes grpc, http, envoy, not 'all'"),
        ({"end_user_headers": ("Cookie",)}, "names of headers in lower case"),
        ({"end_user_headers": ("cookie",)}, "--end-user-headers cookie has another meaning"),
        ({"end_user_headers": ("x-policyd-token",)}, "x-policyd-token has another meaning"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """policyd does not listen to other machines without authentication, nor accept a date that no
    calendar has or a header that names no end user; the error names what to set.
    """
    with pytest.raises(SettingsError, match=words):
        settings(tmp_path, **changes)
    settings(tmp_path, grpc=ANYWHERE, insecure=True)
