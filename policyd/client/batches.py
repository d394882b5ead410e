"""Evaluations that are asked in the same turn of the event loop travel in one call.

A call costs policyd and its client far more than one more evaluation in it. So the first evaluation
of a turn waits until the turn is over, which takes no time on the clock, and those that have joined
it go out as one BatchEvaluate. One that is alone goes out as an Evaluate.

What a batch must not change:

- An evaluation with a `min_revision` goes alone: policyd may wait for the revision, and the others
  of a batch would wait with it.
- Each evaluation gets an idempotency key before the first try and keeps it, so that policyd logs it
  once however often it is tried.
- A batch in which every evaluation failed with the same status is one failed call, and is tried
  elsewhere as such. One in which some failed has been answered.
- Each answer has the ID of its request, which no other request ever has: an answer to another
  batch, or in another order, decides nothing.
- A caller that goes away does not end the call: the others wait for it too.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator

import grpc

from policyd.client.peers import Peers
from policyd.client.statuses import Failed, bare, failed_item
from policyd.client.transport import BATCH_EVALUATE, EVALUATE
from policyd.errors import NoDecision
from policyd.v1.policy_pb2 import (
    BatchEvaluateRequest,
    BatchEvaluateResponse,
    EvaluateRequest,
    EvaluateResponse,
)

MAX_BATCH = 256
"""Evaluations in one call. policyd takes 1,000, but smaller batches keep its event loop freer."""
MAX_BATCH_BYTES = 1024 * 1024
"""Bytes of one call, so that a few large evaluations do not make it too large for all."""
CLOSED = "the client of policyd was closed"
_Waiting = tuple[EvaluateRequest, asyncio.Future[EvaluateResponse]]
_Answer = EvaluateResponse | NoDecision


class Batches:
    """Asks the peers that `peers` gives, and waits `timeout` seconds for an answer.

    Belongs to the event loop that it is first used in.
    """

    def __init__(self, peers: Callable[[], Peers], timeout: float) -> None:
        self._peers = peers
        self._timeout = timeout
        self._waiting: list[_Waiting] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, request: EvaluateRequest) -> EvaluateResponse:
        """The decision on a request. Raises NoDecision."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[EvaluateResponse] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append((request, answer))
        return await answer

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for batch in _batches(waiting):
            task = asyncio.create_task(self._ask(batch))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _ask(self, batch: list[_Waiting]) -> None:
        try:
            answers = await self._answers([request for request, _ in batch])
        except NoDecision as problem:
            answers = [bare(problem)] * len(batch)
        except (asyncio.CancelledError, grpc.aio.UsageError):
            answers = [NoDecision(CLOSED)] * len(batch)
        except Exception as error:  # noqa: BLE001  # Each caller must get an answer.
            answers = [NoDecision(f"policyd could not be asked ({error})")] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            _settle(future, answer)

    async def _answers(self, requests: list[EvaluateRequest]) -> list[_Answer]:
        if len(requests) == 1:
            return [await self._answer(requests[0])]
        asked = BatchEvaluateRequest()
        keys = _keys(len(requests))
        for request, key in zip(requests, keys, strict=True):
            item = asked.items.add(id=key, request=request).request
            item.idempotency_key = item.idempotency_key or key
        response = await self._peers().ask(
            BATCH_EVALUATE, asked, self._timeout, failure=_common_failure
        )
        results = response.results
        if [result.id for result in results] != keys:
            raise NoDecision(f"{len(results)} answers, which do not belong to these requests")
        return [
            result.response
            if result.HasField("response")
            else NoDecision(f"policyd gave no decision ({result.status.message})")
            for result in results
        ]

    async def _answer(self, request: EvaluateRequest) -> EvaluateResponse:
        (key,) = _keys(1)
        asked = EvaluateRequest(idempotency_key=key)
        asked.MergeFrom(request)  # The caller's own key, if there is one, replaces this one.
        return await self._peers().ask(
            EVALUATE, asked, self._timeout, is_patient=asked.min_revision > 0
        )


def _keys(number: int) -> list[str]:
    """Idempotency keys. An evaluation keeps its own at each try, so that policyd logs it once."""
    now = f"{time.time_ns() // 1_000_000:012x}"
    digits = secrets.token_hex(10 * number)
    return [now + digits[begin : begin + 20] for begin in range(0, 20 * number, 20)]


def _common_failure(response: BatchEvaluateResponse) -> Failed | None:
    """The failure of a batch, if every evaluation failed with the same status, for example because
    the settings are not known yet. Then another try may succeed, later or elsewhere.
    """
    results = response.results
    if not results or not results[0].HasField("status"):
        return None
    status = results[0].status
    if any(not one.HasField("status") or one.status.code != status.code for one in results):
        return None
    return failed_item(status.code, status.message)


def _batches(waiting: list[_Waiting]) -> Iterator[list[_Waiting]]:
    batch: list[_Waiting] = []
    size = 0
    for asked in waiting:
        if asked[0].min_revision:
            yield [asked]  # policyd may wait for the revision, and no other should wait with it.
            continue
        size += asked[0].ByteSize()
        if batch and (len(batch) == MAX_BATCH or size > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], asked[0].ByteSize()
        batch.append(asked)
    if batch:
        yield batch


def _settle(future: asyncio.Future[EvaluateResponse], answer: _Answer) -> None:
    if future.done():  # The caller has gone away.
        return
    if isinstance(answer, NoDecision):
        future.set_exception(answer)
    else:
        future.set_result(answer)
