"""How a request's body comes in: as much of it as policies need, within bounds of all kinds.

A body that no policy needs streams through. One that a policy needs is held; before the gateway
holds more than 64 KiB of it, it asks policyd whether the request's API key is in force at all.
"""

import asyncio
from collections.abc import Awaitable, Callable

from gateway import replies
from gateway.headers import RequestHeaders
from gateway.settings import Settings
from gateway.upstream import Body, Upload
from gateway.whole_body import WholeBody
from policyd.asgi.body import Incoming, Receive
from policyd.asgi.reply import NO_DECISION, TOO_SLOW, Reply
from policyd.descriptor.body_memory import SMALL, Bodies, Held
from policyd.descriptor.describe import HttpRequest, about_key, read_attributes
from policyd.descriptor.identifiers import NOT_READ, TOO_LARGE, BodyAttributes
from policyd.descriptor.pieces import Pieces
from policyd.errors import BodiesFull, NoDecision, PolicydError
from policyd.v1.policy_pb2 import CheckKeyRequest, CheckKeyResponse

CheckKey = Callable[[CheckKeyRequest], Awaitable[CheckKeyResponse]]
Tell = Callable[[str, PolicydError], None]


class Rejected(Exception):
    """The body is not taken in. The client gets `reply`."""

    def __init__(self, reply: Reply) -> None:
        super().__init__()
        self.reply = reply


class Intake:
    """Takes bodies in. `check_key` asks policyd; without it, every body that matters is read.

    `tell` logs a failure that is not the client's: it gets what became of the request, and why.
    """

    def __init__(self, settings: Settings, check_key: CheckKey | None, tell: Tell) -> None:
        self._settings = settings
        self._check_key = check_key
        self._tell = tell
        self._bodies = Bodies(settings.memory)

    def hold(self) -> Held:
        """The account of the bytes that are held of one request's body."""
        return self._bodies.hold()

    @property
    def readers(self) -> dict[int, bool]:
        """The processes that read large bodies, by process ID: whether each has a body."""
        return self._bodies.readers

    @property
    def held(self) -> int:
        """Bytes of large bodies that are held."""
        return self._bodies.held

    def close(self) -> None:
        """End the processes that read large bodies."""
        self._bodies.close()

    async def read(
        self, request: HttpRequest, receive: Receive, headers: RequestHeaders, held: Held
    ) -> tuple[Body, BodyAttributes]:
        """The body, and its attributes, which are NOT_READ out of scope.

        `headers` are all that the request has. Raises Rejected or ClientGone.
        """
        coming = _Coming(receive, headers.content_length)
        if not request.target.in_scope:
            return coming.rest() if headers.has_body else None, NOT_READ
        if not (headers.names_key or self._settings.api_key):
            # The request is denied whatever its body holds, so the body is not read.
            return coming.rest(), TOO_LARGE
        limit = self._settings.max_body
        if (headers.content_length or 0) > limit:
            return coming.rest(), TOO_LARGE
        await self._take(coming, min(SMALL, limit), held)
        attributes = await self._read_small(coming, request)
        if attributes is not None:
            return coming.body.whole(), attributes
        if not await self._needs_body(request):
            return coming.rest(), TOO_LARGE
        await self._take(coming, limit, held)
        if coming.more or len(coming.body) > limit:
            return coming.rest(), TOO_LARGE
        attributes = await self._read(coming.body, request, held, limit)
        return WholeBody(coming.body), attributes

    async def _take(self, coming: "_Coming", limit: int, held: Held) -> None:
        """Wait for the body's end, or for more of it than `limit`."""
        try:
            async with asyncio.timeout(self._settings.body_timeout):
                await coming.take(limit, held)
        except TimeoutError:
            raise Rejected(TOO_SLOW) from None
        except BodiesFull as problem:
            raise self._full(problem) from None

    async def _read_small(self, coming: "_Coming", request: HttpRequest) -> BodyAttributes | None:
        """The attributes of a small body; None where it is not small, as sent or decompressed."""
        limit = self._settings.max_body
        if coming.more or len(coming.body) > SMALL:
            return None
        # Reading this much costs little enough to do it for clients without a key in force.
        bound = min(limit, SMALL) if request.content_encoding else limit
        attributes = await self._read(coming.body, request, self.hold(), bound)
        return None if attributes == TOO_LARGE and bound < limit else attributes

    async def _read(
        self, body: Pieces, request: HttpRequest, held: Held, limit: int
    ) -> BodyAttributes:
        try:
            return await read_attributes(request, body, self._bodies, held, limit)
        except BodiesFull as problem:
            raise self._full(problem) from None

    async def _needs_body(self, request: HttpRequest) -> bool:
        if self._check_key is None:
            return True
        try:
            return (await self._check_key(about_key(request))).needs_body
        except NoDecision as problem:
            if self._settings.on_policy_error == "allow" and problem.is_outage:
                return True
            self._tell("refused", problem)
            raise Rejected(NO_DECISION) from None

    def _full(self, problem: BodiesFull) -> Rejected:
        self._tell("refused", problem)
        return Rejected(replies.BODIES_FULL)


class _Coming:
    """A body that is arriving. `body` is what has come."""

    def __init__(self, receive: Receive, length: int | None) -> None:
        self._incoming = Incoming(receive)
        self._length = length
        self.body = Pieces()

    @property
    def more(self) -> bool:
        """Whether there is more of it."""
        return self._incoming.more

    async def take(self, limit: int, held: Held) -> None:
        """Wait until it is complete, or longer than `limit`. Raises ClientGone or BodiesFull."""
        await self._incoming.take(self.body, limit, held)

    def rest(self) -> Upload:
        """All of it, to be sent on as it comes."""
        return Upload(self._incoming, self._length, self.body)
