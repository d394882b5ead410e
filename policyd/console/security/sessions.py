"""Sessions: signed cookies, and the one-time link with which the first password is set.

Both are signed with a key that is made from the administration token and the store's epoch. So
all processes accept the same ones without a table of sessions, and a new epoch or token ends all of
them. A session has an ID, by which the store remembers the few that were ended one by one.

Browsers keep cookies by host, not by port. So the cookies' names carry the instance, a digest of
the administration token: two consoles of different installations on one host do not sign each other
out, and the processes of one installation share their sessions.

Another cookie outlives the session: it recognises a device that has signed in before. It opens
nothing, but strangers' attempts do not make such a device wait: see attempts.py.
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
"""Seconds for which the one-time link is valid."""
DEVICE_LIFETIME = 90 * 24 * 3600
"""Seconds that a device is recognised after its last sign-in."""
_ID = re.compile(r"[0-9a-f]{32}")


class Sessions:
    """Makes and checks sessions. `secure` tells whether browsers reach the console by TLS."""

    def __init__(self, token: str, *, secure: bool) -> None:
        self._token = token.encode()
        self._secure = secure
        # With this prefix, a browser accepts the cookie only over TLS and from this very host.
        prefix = "__Host-" if secure else ""
        instance = hmac.digest(self._token, b"policyd console instance", "sha256").hex()[:8]
        self.cookie = f"{prefix}policyd-session-{instance}"
        self._device_cookie = f"{prefix}policyd-device-{instance}"

    def begin(self, response: Response, epoch: int, device: str = "") -> None:
        """Begin a session: `response` sets its cookies. `device` is the device's ID, if known."""
        self._set(response, self.cookie, "session", epoch, _new_id(), LIFETIME)
        known = device or _new_id()
        self._set(response, self._device_cookie, "device", epoch, known, DEVICE_LIFETIME)

    def _set(
        self, response: Response, cookie: str, purpose: str, epoch: int, value: str, lifetime: int
    ) -> None:
        # Lax, so that a link from another site opens the page without a new sign-in.
        response.set_cookie(
            cookie,
            self._signer(purpose, epoch).dumps(value),
            max_age=lifetime,
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )

    def end(self, response: Response) -> None:
        """End a session: `response` deletes its cookie."""
        response.delete_cookie(self.cookie, secure=self._secure, httponly=True, samesite="lax")

    def session(self, request: Request, epoch: int) -> str:
        """The ID of the session of this epoch in the request's cookie; "" where there is none."""
        return self._id("session", epoch, request.cookies.get(self.cookie, ""), LIFETIME)

    def device(self, request: Request, epoch: int) -> str:
        """The ID of the request's device, if it has signed in before; else ""."""
        cookie = request.cookies.get(self._device_cookie, "")
        return self._id("device", epoch, cookie, DEVICE_LIFETIME)

    def link_code(self, epoch: int) -> str:
        """The code in the one-time link."""
        return str(self._signer("link", epoch).dumps("password"))

    def is_link_code(self, code: str, epoch: int) -> bool:
        """Whether `code` is that of a one-time link of this epoch that has not expired."""
        return self._loaded("link", epoch, code, LINK_LIFETIME) is not None

    def _id(self, purpose: str, epoch: int, value: str, lifetime: int) -> str:
        # A session of an earlier version has no ID, so that it could not be ended.
        found = self._loaded(purpose, epoch, value, lifetime)
        return found if isinstance(found, str) and _ID.fullmatch(found) else ""

    def _loaded(self, purpose: str, epoch: int, value: str, lifetime: int) -> object:
        """The signed value; None where its signature is wrong or too old."""
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
