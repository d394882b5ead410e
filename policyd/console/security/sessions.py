"""Who is signed in: a signed cookie, and the one-time link by which the first one comes in.

Both are signed with a key made of the administration token and the store's epoch, so all processes
agree, and a new epoch or token ends every one of them. A session has an ID, by which the store
knows the few that were ended alone.

Another cookie stays when a session ends: it tells a device that has signed in before, which opens
nothing, but is not kept waiting for what strangers try; see attempts.py.
"""

import hmac
import re
import secrets
from hashlib import sha256

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import Request
from starlette.responses import Response

LIFETIME = 12 * 3600
"""Seconds that a session lasts."""
LINK_LIFETIME = 24 * 3600
"""Seconds that the link of the first start is good for."""
DEVICE_LIFETIME = 90 * 24 * 3600
"""Seconds after its last sign-in that a device is known."""
_ID = re.compile(r"[0-9a-f]{32}")


class Sessions:
    """Makes and checks sessions. `secure`: the console is served under TLS."""

    def __init__(self, token: str, *, secure: bool) -> None:
        self._token = token.encode()
        self._secure = secure
        # Under this prefix a browser takes the cookie from this very host and by TLS only.
        prefix = "__Host-" if secure else ""
        self._cookie = f"{prefix}policyd-session"
        self._device_cookie = f"{prefix}policyd-device"

    def begin(self, response: Response, epoch: int, device: str = "") -> None:
        """Sign in: the cookies go with `response`. `device` is the device's ID, if it has one."""
        self._set(response, self._cookie, "session", epoch, _new_id(), LIFETIME)
        known = device or _new_id()
        self._set(response, self._device_cookie, "device", epoch, known, DEVICE_LIFETIME)

    def _set(
        self, response: Response, cookie: str, purpose: str, epoch: int, value: str, lifetime: int
    ) -> None:
        # Lax, as a link that somebody shares should open for whoever is signed in.
        response.set_cookie(
            cookie,
            self._signer(purpose, epoch).dumps(value),
            max_age=lifetime,
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )

    def end(self, response: Response) -> None:
        """Sign out: the session's cookie goes away with `response`."""
        response.delete_cookie(self._cookie, secure=self._secure, httponly=True, samesite="lax")

    def session(self, request: Request, epoch: int) -> str:
        """The ID of the session of this epoch that the request carries; empty: it has none."""
        return self._id("session", epoch, request.cookies.get(self._cookie, ""), LIFETIME)

    def device(self, request: Request, epoch: int) -> str:
        """The ID of the device that asks, if it has signed in before; else empty."""
        cookie = request.cookies.get(self._device_cookie, "")
        return self._id("device", epoch, cookie, DEVICE_LIFETIME)

    def link_code(self, epoch: int) -> str:
        """What the one-time link carries."""
        return str(self._signer("link", epoch).dumps("password"))

    def is_link_code(self, code: str, epoch: int) -> bool:
        """Whether `code` is of a link of this epoch."""
        return self._loaded("link", epoch, code, LINK_LIFETIME) is not None

    def _id(self, purpose: str, epoch: int, value: str, lifetime: int) -> str:
        # An earlier version's session has no ID, and could not be ended.
        found = self._loaded(purpose, epoch, value, lifetime)
        return found if isinstance(found, str) and _ID.fullmatch(found) else ""

    def _loaded(self, purpose: str, epoch: int, value: str, lifetime: int) -> object:
        """What was signed; None where the signature is not good, or no longer."""
        try:
            found: object = self._signer(purpose, epoch).loads(value, max_age=lifetime)
        except BadSignature:
            return None
        return found

    def _signer(self, purpose: str, epoch: int) -> URLSafeTimedSerializer:
        key = hmac.digest(self._token, f"policyd console {purpose} {epoch}".encode(), "sha256")
        return URLSafeTimedSerializer(
            key, salt=purpose, signer_kwargs={"digest_method": sha256, "key_derivation": "hmac"}
        )


def _new_id() -> str:
    return secrets.token_hex(16)
