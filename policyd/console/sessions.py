"""Who is signed in: a signed cookie, and the one-time link by which the first one comes in.

Both are signed with a key made of the administration token and the store's epoch, so all processes
agree, nothing is kept on the server, and a new epoch or token ends every one of them.
"""

import hmac
from hashlib import sha256

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import Request
from starlette.responses import Response

LIFETIME = 12 * 3600
"""Seconds that a session lasts."""
LINK_LIFETIME = 24 * 3600
"""Seconds that the link of the first start is good for."""


class Sessions:
    """Makes and checks sessions. `secure`: the console is served under TLS."""

    def __init__(self, token: str, *, secure: bool) -> None:
        self._token = token.encode()
        self._secure = secure
        # Under this prefix a browser takes the cookie from this very host and by TLS only.
        self._cookie = "__Host-policyd-session" if secure else "policyd-session"

    def begin(self, response: Response, epoch: int) -> None:
        """Sign in: the cookie goes with `response`."""
        # Lax, as a link that somebody shares should open for whoever is signed in.
        response.set_cookie(
            self._cookie,
            self._signer("session", epoch).dumps("administrator"),
            max_age=LIFETIME,
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )

    def end(self, response: Response) -> None:
        """Sign out: the cookie goes away with `response`."""
        response.delete_cookie(self._cookie, secure=self._secure, httponly=True, samesite="lax")

    def is_signed_in(self, request: Request, epoch: int) -> bool:
        """Whether the request carries a session of this epoch."""
        cookie = request.cookies.get(self._cookie, "")
        return self._is_valid("session", epoch, cookie, LIFETIME)

    def link_code(self, epoch: int) -> str:
        """What the one-time link carries."""
        return str(self._signer("link", epoch).dumps("password"))

    def is_link_code(self, code: str, epoch: int) -> bool:
        """Whether `code` is of a link of this epoch."""
        return self._is_valid("link", epoch, code, LINK_LIFETIME)

    def _is_valid(self, purpose: str, epoch: int, value: str, lifetime: int) -> bool:
        try:
            self._signer(purpose, epoch).loads(value, max_age=lifetime)
        except BadSignature:
            return False
        return True

    def _signer(self, purpose: str, epoch: int) -> URLSafeTimedSerializer:
        key = hmac.digest(self._token, f"policyd console {purpose} {epoch}".encode(), "sha256")
        return URLSafeTimedSerializer(
            key, salt=purpose, signer_kwargs={"digest_method": sha256, "key_derivation": "hmac"}
        )
