"""Gateways that decide by themselves, as policyd sees them: stubs that keep what they are sent."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from policyd.client.stream_call import StreamCall
from policyd.services.local_messages import State
from policyd.v1 import local_pb2 as pb
from policyd.v1.local_pb2_grpc import LocalDecisionServiceStub

TOKEN = "0123456789abcdef-local"
_count = itertools.count()


def token_file(folder: Path, token: str = TOKEN) -> Path:
    """The file with the local token."""
    file = folder / "local-token"
    file.write_text(token + "\n")
    file.chmod(0o600)
    return file


def bearer(token: str = TOKEN) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def stub(channel: grpc.aio.Channel) -> Any:
    return LocalDecisionServiceStub(channel)


async def rejection(call: Any) -> grpc.aio.AioRpcError:
    """The error of a stream that is rejected before it says anything: gRPC may hide the error
    behind its own where a message is written meanwhile."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    return raised.value


class FakeFollower:
    """Follows the policyd behind `channel`, from the settings that it had before, if any.

    It keeps the law of followers as far as policyd sees it: it tells what is in force after each
    `complete`.
    """

    def __init__(self, before: "FakeFollower | None" = None) -> None:
        self.id: str = before.id if before else f"{next(_count):012x}"
        self.keys: dict[bytes, str] = dict(before.keys) if before else {}
        self.state: State | None = before.state if before else None
        self.database: str = before.database if before else ""
        self.defaults: pb.DefaultsInForce | None = None
        self.snapshots: list[pb.SnapshotBegin] = []
        self.beats: list[pb.Heartbeat] = []
        self.pieces: list[pb.KeyPiece] = []
        self.changed = asyncio.Condition()
        self.error: grpc.aio.AioRpcError | None = None
        self._coming: dict[bytes, str] | None = None
        self._call: Any = None
        self._reading: asyncio.Task[None] | None = None

    async def follow(self, channel: grpc.aio.Channel, token: str = TOKEN, **given: Any) -> None:
        """Begin to follow; what comes is read in the background."""
        self._call = StreamCall(stub(channel).WatchKeys(metadata=bearer(token)))
        first: dict[str, Any] = {"follower_id": self.id, "host": "gateway-1", "version": "1"}
        await self._call.write(pb.WatchKeysRequest(**first | self._has() | given))
        self._reading = asyncio.create_task(self._read())

    def _has(self) -> dict[str, Any]:
        if self.state is None:
            return {"has_none": True, "database": self.database}
        return {
            "revision": self.state.revision,
            "epoch": self.state.epoch,
            "database": self.database,
        }

    async def _read(self) -> None:
        try:
            while (event := await self._call.read()) is not grpc.aio.EOF:
                await self._take(event)
        except grpc.aio.AioRpcError as error:
            self.error = error
        async with self.changed:
            self.changed.notify_all()

    async def _take(self, event: pb.WatchKeysResponse) -> None:
        kind = event.WhichOneof("event")
        if kind == "snapshot":
            self.snapshots.append(event.snapshot)
            self._coming = {}
        elif kind == "keys":
            self._take_keys(event.keys)
        elif kind == "complete":
            await self._complete(event.complete)
        else:
            self.beats.append(event.heartbeat)
        async with self.changed:
            self.changed.notify_all()

    def _take_keys(self, piece: pb.KeyPiece) -> None:
        self.pieces.append(piece)
        if self._coming is None:
            self._coming = dict(self.keys)
        for one in piece.keys:
            assert piece.shared[one.shared].accept
            self._coming[one.digest] = one.key_id
        for digest in piece.gone:
            self._coming.pop(digest, None)

    async def _complete(self, complete: pb.SettingsComplete) -> None:
        self.keys, self._coming = self.keys if self._coming is None else self._coming, None
        self.state, self.database = State(complete.revision, complete.epoch), complete.database
        self.defaults = complete.defaults if complete.HasField("defaults") else None
        await self._call.write(pb.WatchKeysRequest(**self._has()))

    async def until(self, holds: Callable[[], object], seconds: float = 30) -> None:
        """Wait until something holds of what has come."""
        async with asyncio.timeout(seconds), self.changed:
            await self.changed.wait_for(lambda: bool(holds()))

    async def beaten(self, times: int = 2) -> None:
        """Wait for so many more heartbeats."""
        wanted = len(self.beats) + times
        await self.until(lambda: len(self.beats) >= wanted)

    async def leave(self) -> None:
        """End the stream."""
        self._call.cancel()
        if self._reading is not None:
            await asyncio.wait({self._reading})


class FakeCarrier:
    """Carries the lines of a file of a spool, by one stream."""

    def __init__(
        self, channel: grpc.aio.Channel, token: str = TOKEN, spool: str = "5" * 16
    ) -> None:
        self._call = StreamCall(stub(channel).AppendDecisions(metadata=bearer(token)))
        self.spool = spool

    async def ask(self, **request: Any) -> pb.AppendDecisionsResponse:
        """The response to one request. Raises AioRpcError."""
        await self._call.write(pb.AppendDecisionsRequest(**request))
        response: pb.AppendDecisionsResponse = await self._call.read()
        return response

    async def resume(self, **given: Any) -> pb.AppendDecisionsResponse:
        usual = {"spool": self.spool, "host": "gateway-1"}
        return await self.ask(resume=pb.ResumeSpool(**usual | given))

    async def carry(
        self, lines: bytes, start: int = 0, file: str = "aa-1.jsonl"
    ) -> pb.AppendDecisionsResponse:
        return await self.ask(chunk=pb.SpoolChunk(file=file, start=start, lines=lines))

    def end(self) -> None:
        self._call.cancel()
