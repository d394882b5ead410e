"""A look at a policyd as LocalPolicyClient follows it, for a gateway's start and its doctor."""

import asyncio
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc
from grpc import ChannelCredentials

from policyd.client.key_follower import Policyds, channel_to, first_request, reason
from policyd.client.key_stream import KeyStream, Pulse, StreamFault
from policyd.client.statuses import failed
from policyd.client.stream_call import StreamCall
from policyd.client.targets import Targets, only_grpc
from policyd.command.worker_clock import WorkerClock
from policyd.decision_log import spool as spools
from policyd.errors import NoDecision, SettingsError
from policyd.keys import api_key
from policyd.keys.key_table import KeyTable
from policyd.v1 import local_pb2 as pb
from policyd.v1.local_pb2_grpc import LocalDecisionServiceStub

if TYPE_CHECKING:
    from policyd.v1.local_pb2_grpc import LocalDecisionServiceAsyncStub  # In the types only.


class Look(NamedTuple):
    """What was found at a policyd."""

    revision: int
    """The revision of its settings."""
    in_force: bool
    """Whether the key that was asked for is in force."""


async def look(
    target: Targets,
    token: str,
    credentials: ChannelCredentials | None,
    *,
    seconds: float,
    key: str = "",
    spool: Path | None = None,
) -> Look:
    """Look at the first policyd of `target` that can be followed, for up to `seconds` at each. With
    `key`, it has to send the settings of all keys. Its database has to be the one that `spool` is
    for, if any. Raises NoDecision, with the cause and, where it is known, the fix, and
    SettingsError."""
    policyds = Policyds(only_grpc(target, "LocalPolicyClient"), credentials, token)
    database = (spools.known_database(spool) if spool else None) or ""
    problem = NoDecision("no policyd was asked")
    for target in policyds.targets:
        try:
            async with asyncio.timeout(seconds), channel_to(target, policyds) as channel:
                return await _read(policyds, channel, key, database)
        except grpc.aio.AioRpcError as error:
            is_outage = failed(error).is_outage
            problem = NoDecision(reason(error.code(), error.details()), is_outage=is_outage)
        except TimeoutError:
            problem = NoDecision(f"{target} does not answer", is_outage=True)
        except StreamFault as fault:
            problem = NoDecision(str(fault))
    raise problem


def look_at_folder(folder: Path) -> str:
    """The state of a spool's folder, in words; a missing folder is not made. Raises SettingsError
    where it cannot be used."""
    spools.check_gateways(folder)
    if not folder.is_dir():
        return "it is made at the start"
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SettingsError(f"--spool {folder} cannot be written to: give it to the gateway's user")
    waiting = spools.left(folder)
    return (
        f"it can be used; {waiting} bytes wait for the next start" if waiting else "it can be used"
    )


async def _read(policyds: Policyds, channel: grpc.aio.Channel, key: str, database: str) -> Look:
    keys = KeyTable()
    stream = KeyStream(keys, Pulse(WorkerClock(float("inf"))), _any)
    request = first_request(keys, database, secrets.token_hex(6))
    stub: LocalDecisionServiceAsyncStub = LocalDecisionServiceStub(channel)
    # Not an iterator of requests: policyd ends a stream whose follower has ended its own side.
    call = StreamCall(stub.WatchKeys(metadata=policyds.metadata))
    await call.write(request)
    while isinstance(message := await call.read(), pb.WatchKeysResponse):
        await stream.take(message)
        if keys.is_known:
            return Look(keys.revision, keys.settings(api_key.digest(key)) is not None)
        if stream.database and not key:
            return Look(message.heartbeat.revision, in_force=False)
    raise StreamFault("it has ended the stream")


async def _any(_: str) -> None:
    """Takes a policyd with any database."""
