"""LocalDecisionService.WatchKeys: gateways follow the settings, by which they decide.

A follower's stream is a loop: a heartbeat each second, and between two of them whatever there is to
send. At most SNAPSHOTS followers are sent a snapshot at a time; the others wait for their turn, get
heartbeats meanwhile, and decide by the settings that they have.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from policyd.command.log_throttle import Throttle
from policyd.errors import (
    GatewayTooSlow,
    InvalidArgument,
    PolicydError,
    TooManyGateways,
    WrongDatabase,
)
from policyd.keys import key_table
from policyd.services import local_messages
from policyd.services.errors import Note, unnoted
from policyd.services.followers import Follower, Followers
from policyd.services.key_feed import KeyFeed, Part
from policyd.services.lasting_streams import LastingStreams, next_request, write
from policyd.v1 import local_pb2 as pb

_log = logging.getLogger(__name__)

SNAPSHOTS = 4
"""Snapshots that a worker sends at once."""
_BEGINNING = 250
"""How many streams may wait for their first request at once: the one that has waited longest makes
room for a new one."""
_BEAT = 1.0
"""Seconds between two heartbeats."""
_PATIENCE = 30.0
"""Seconds for a follower to take a message ..."""
_BEGIN = 10.0
"""... and to send its first one."""
_LOG_INTERVAL = 60.0


class KeyWatching:
    """Sends what `feed` has to `followers`. `clock` is the worker's, in seconds since 1970; `note`
    gets each error that ends a stream."""

    def __init__(
        self,
        feed: KeyFeed,
        followers: Followers,
        clock: Callable[[], float],
        note: Note = unnoted,
    ) -> None:
        self._feed = feed
        self._followers = followers
        self._clock = clock
        self._note = note
        self._beginning = LastingStreams(_BEGINNING, "begin to follow")
        self._sending = 0
        self._throttle = Throttle(_LOG_INTERVAL)

    async def watch(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """See local.proto."""
        try:
            await self._watch(requests, context)
        except PolicydError as error:
            if isinstance(error, GatewayTooSlow | TooManyGateways) and self._throttle.is_due():
                _log.warning("a gateway is sent no settings: %s", error)
            self._note(error)
            await self._beginning.end(context, error)

    async def _watch(self, requests: AsyncIterator[bytes], context: Any) -> None:
        request = await self._first(requests)
        greeting, has = local_messages.greeting(request), local_messages.state(request)
        self._check_database(request.database, greeting.host)
        with self._followers.joined(greeting, has) as follower:
            listening = asyncio.ensure_future(self._listen(requests, follower))
            sending = asyncio.ensure_future(self._keep_sending(follower, context))
            try:
                await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
                for ended in (listening, sending):
                    if ended.done():
                        ended.result()
            finally:
                for running in (listening, sending):
                    running.cancel()
                await asyncio.wait({listening, sending})

    async def _first(self, requests: AsyncIterator[bytes]) -> pb.WatchKeysRequest:
        try:
            with self._beginning.held(), self._beginning.waiting():
                data = await next_request(requests, _BEGIN)
        except TimeoutError:
            data = None
        if data is None:
            raise InvalidArgument("the stream begins with a request that states the follower")
        return local_messages.parsed(pb.WatchKeysRequest, data)

    def _check_database(self, database: str, host: str) -> None:
        """Raises WrongDatabase where the follower belongs to another database than this policyd."""
        known = self._feed.database
        if database and known and database != known:
            if self._throttle.is_due():
                _log.error(
                    "a gateway on %s decides for the database %s, and this policyd's is %s: it "
                    "gets no settings. Give it its own policyd, or another --spool",
                    *(host, database, known),
                )
            raise WrongDatabase(
                f"the gateway's settings and decisions are of the database {database}, and this "
                f"policyd's is {known}: ask the policyd of that database, or give the gateway "
                "another --spool"
            )

    async def _listen(self, requests: AsyncIterator[bytes], follower: Follower) -> None:
        async for data in requests:
            request = local_messages.parsed(pb.WatchKeysRequest, data)
            self._followers.tell(follower, local_messages.state(request))
            self._check_database(request.database, follower.host)

    async def _keep_sending(self, follower: Follower, context: Any) -> None:
        beat_at = await self._beat(context)
        if follower.sent is not None and (end := self._feed.end_of(follower.sent)) is not None:
            await write(context, end, _PATIENCE)
        while True:
            news = self._feed.news
            has_room = self._sending < SNAPSHOTS
            part = self._feed.next_part(
                *(follower.sent, follower.sent_at, follower.in_force), may_be_snapshot=has_room
            )
            if part is not None:
                beat_at = await self._send(part, context, beat_at)
                follower.has_been_sent(part.state)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(max(beat_at - key_table.seconds(), 0)):
                    await news.wait()
            if key_table.seconds() >= beat_at:
                beat_at = await self._beat(context)

    async def _send(self, part: Part, context: Any, beat_at: float) -> float:
        """Send all of it, and heartbeats as they are due. Returns when the next one is due, by
        key_table.seconds()."""
        self._sending += part.is_snapshot
        try:
            number = 0
            while message := part.message(number):
                await write(context, message, _PATIENCE)
                number += 1
                if key_table.seconds() >= beat_at:
                    beat_at = await self._beat(context)
        finally:
            if part.is_snapshot:
                self._sending -= 1
                self._feed.wake()
        return beat_at

    async def _beat(self, context: Any) -> float:
        """Send a heartbeat. Returns when the next one is due, by key_table.seconds()."""
        feed = self._feed
        message = local_messages.heartbeat(feed.staleness, feed.state, self._clock(), feed.database)
        await write(context, message, _PATIENCE)
        return key_table.seconds() + _BEAT
