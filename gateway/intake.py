"""How a request's body comes in: as much of it as the policy needs, within bounds of all kinds.

A body that the policy does not need streams through. One that it needs is held; before more than
64 KiB of it are, policyd is asked whether its API key is in force at all.
"""

import asyncio
from collections.abc import Awaitable, Callable

from gateway import describe, replies
from gateway.describe import Scope
from gateway.headers import RequestHeaders
from gateway.settings import Settings
from gateway.upstream import Body, ClientGone, Receive, Upload
from policyd.asgi.reply import TOO_SLOW, Reply
from policyd.descriptor.body_memory import SMALL, Bodies, Held
from policyd.descriptor.identifiers import TOO_LARGE, BodyAttributes
from policyd.engine.model import Target
from policyd.errors import BodiesFull, NoDecision, PolicydError
from policyd.v1.policy_pb2 import CheckKeyRequest, CheckKeyResponse

CheckKey = Callable[[CheckKeyRequest], Awaitable[CheckKeyResponse]]
Tell = Callable[[str, PolicydError], None]


class Refused(Exception):
    """The body is not taken in. `reply` is what the client is told."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply


class Intake:
    """Takes bodies in. `check_key` asks policyd; without it, every body that matters is read.

    `tell` is called with what became of a request for which of our own troubles, to be logged.
    """

    def __init__(self, settings: Settings, check_key: CheckKey | None, tell: Tell) -> None:
        self._settings = settings
        self._check_key = check_key
        self._tell = tell
        self._bodies = Bodies(settings.memory)

    def hold(self) -> Held:
        """What the body of one request is held by."""
        return self._bodies.hold()

    @property
    def held(self) -> int:
        """Bytes of large bodies that are held."""
        return self._bodies.held

    def close(self) -> None:
        """Read no more."""
        self._bodies.close()

    async def read(
        self,
        scope: Scope,
        receive: Receive,
        headers: RequestHeaders,
        path: str,
        target: Target,
        held: Held,
    ) -> tuple[Body, BodyAttributes | None]:
        """The body, and what it says that matters to the policy: None out of scope.

        `target` is what the request asks for by `path`. Raises Refused or ClientGone.
        """
        coming = _Coming(receive, headers.content_length)
        if not target.in_scope:
            return coming.rest() if headers.has_body else None, None
        if not (headers.names_key or self._settings.api_key):
            # It is refused whatever it holds, so it is not read.
            return coming.rest(), TOO_LARGE
        limit = self._settings.max_body
        if (headers.content_length or 0) > limit:
            return coming.rest(), TOO_LARGE
        await self._take(coming, min(SMALL, limit), held)
        facts = await self._read_small(coming, headers, target)
        if facts is not None:
            return coming.body, facts
        if not await self._needs_body(scope, headers, path):
            return coming.rest(), TOO_LARGE
        await self._take(coming, limit, held)
        if coming.more or len(coming.body) > limit:
            return coming.rest(), TOO_LARGE
        return coming.body, await self._read(coming.body, headers, target, held, limit)

    async def _take(self, coming: "_Coming", limit: int, held: Held) -> None:
        """Wait for the body's end, or for more of it than `limit`."""
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                await coming.take(limit, held)
        except TimeoutError:
            raise Refused(TOO_SLOW) from None
        except BodiesFull as problem:
            raise self._full(problem) from None

    async def _read_small(
        self, coming: "_Coming", headers: RequestHeaders, target: Target
    ) -> BodyAttributes | None:
        """What a small body says; None where it is not small, if only once it is decompressed."""
        limit = self._settings.max_body
        if coming.more or len(coming.body) > SMALL:
            return None
        # What it takes to read as much is little enough to be spent on strangers.
        bound = min(limit, SMALL) if headers.all(b"content-encoding") else limit
        facts = await self._read(coming.body, headers, target, self.hold(), bound)
        return None if facts == TOO_LARGE and bound < limit else facts

    async def _read(
        self, body: bytes, headers: RequestHeaders, target: Target, held: Held, limit: int
    ) -> BodyAttributes:
        try:
            return await describe.read(self._bodies, held, body, headers, target.endpoint, limit)
        except BodiesFull as problem:
            raise self._full(problem) from None

    async def _needs_body(self, scope: Scope, headers: RequestHeaders, path: str) -> bool:
        if self._check_key is None:
            return True
        asked = describe.about_key(scope, path, headers, self._settings.api_key)
        try:
            return (await self._check_key(asked)).needs_body
        except NoDecision as problem:
            if self._settings.on_policy_error == "allow" and problem.is_outage:
                return True
            self._tell("refused", problem)
            raise Refused(replies.NO_DECISION) from None

    def _full(self, problem: BodiesFull) -> Refused:
        self._tell("refused", problem)
        return Refused(replies.BODIES_FULL)


class _Coming:
    """A body that comes. `body` is what is here, and `more` says whether there is more."""

    def __init__(self, receive: Receive, length: int | None) -> None:
        self._receive = receive
        self._length = length
        self.body = b""
        self.more = True

    async def take(self, limit: int, held: Held) -> None:
        """Wait until it is complete, or longer than `limit`. Raises ClientGone or BodiesFull."""
        parts = bytearray(self.body)
        while self.more and len(parts) <= limit:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            self.more = message.get("more_body", False)
            parts += message.get("body", b"")
            held.grow(len(parts))
        self.body = bytes(parts)

    def rest(self) -> Upload:
        """All of it, to be sent on as it comes."""
        return Upload(self._receive, self._length, self.body, self.more)
