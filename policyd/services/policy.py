"""PolicyService: messages in, messages out; policyd/decider decides."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from policyd.decider import MAX_BATCH, Decider
from policyd.errors import InvalidArgument, RevisionNotReached
from policyd.services.errors import status_of
from policyd.v1 import policy_pb2 as pb
from policyd.v1.policy_pb2_grpc import PolicyServiceServicer


class PolicyServicer(PolicyServiceServicer):
    """Answers callers by `decider`; `trusted` names the headers in which they may name the end
    user. Their decisions are counted by `adapter`, except those of batches."""

    def __init__(
        self, decider: Decider, trusted: Callable[[], frozenset[str]], adapter: str = "grpc"
    ) -> None:
        self._decider = decider
        self._trusted = trusted
        self._adapter = adapter

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:
        """See policy.proto."""
        decider = self._decider
        if request.min_revision > decider.revision:
            await decider.reach(request.min_revision, context.time_remaining())
        trusted = self._trusted()
        return await decider.answer(
            request, trusted=trusted, adapter=self._adapter, context=context
        )

    async def BatchEvaluate(
        self, request: pb.BatchEvaluateRequest, context: Any
    ) -> pb.BatchEvaluateResponse:
        """See policy.proto."""
        if len(request.items) > MAX_BATCH:
            raise InvalidArgument(
                f"a batch has at most {MAX_BATCH} items, not {len(request.items)}"
            )
        # Each access to an item of a message is slow, so each is accessed once.
        asked = [(item.id, item.request) for item in request.items]
        ids, requests = [one for one, _ in asked], [one for _, one in asked]
        if len(set(ids)) < len(ids):
            raise InvalidArgument("each item of a batch needs an id of its own")
        wanted = max([one.min_revision for one in requests], default=0)
        if wanted > self._decider.revision:
            with suppress(RevisionNotReached):  # The items that ask for it each get the error.
                await self._decider.reach(wanted, context.time_remaining())
        answers = await self._decider.batch(requests, self._trusted(), context=context)
        response = pb.BatchEvaluateResponse()
        for item_id, answer in zip(ids, answers, strict=True):
            _put(response.results.add(id=item_id), answer)
        return response

    async def CheckKey(self, request: pb.CheckKeyRequest, context: Any) -> pb.CheckKeyResponse:
        """See policy.proto."""
        return self._decider.check_key(request)

    async def ReportOutcome(
        self, request: pb.ReportOutcomeRequest, context: Any
    ) -> pb.ReportOutcomeResponse:
        """See policy.proto."""
        return await self._decider.report(request.outcomes)


def _put(result: pb.BatchEvaluateResult, answer: pb.EvaluateResponse | Exception) -> None:
    if isinstance(answer, pb.EvaluateResponse):
        result.response.CopyFrom(answer)
        return
    code, message, reason = status_of(answer)
    result.status.CopyFrom(pb.ItemStatus(code=code.value[0], message=message, reason=reason))
