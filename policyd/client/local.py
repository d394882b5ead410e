"""LocalPolicyClient: decides in this process by policyd's settings, instead of asking policyd.

    async with LocalPolicyClient("policyd:50051", spool=Path("spool"), token=token) as policyd:
        answer = await policyd.evaluate(EvaluateRequest(key=key, has_user=False))

It has the methods of PolicyClient and gives the same answers, made by the same engine. policyd
stays the authority: this client follows its settings (key_follower.py), and hands it every decision
(decision_carrier.py). A decision is in the spool, on this machine's disk, before its answer is
given. The client decides while its settings are no older than `max_staleness`; beyond that, and
until it has any settings, policyd counts as not reached.
"""

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from grpc import ChannelCredentials

from policyd.client import forking
from policyd.client.batches import CLOSED
from policyd.client.decision_carrier import Carrier
from policyd.client.fallback import OnError, instead
from policyd.client.key_follower import KeyFollower, Policyds
from policyd.client.key_stream import StreamFault
from policyd.client.local_outcomes import LocalOutcomes
from policyd.client.local_telemetry import ADAPTER, NO_TELEMETRY, LocalTelemetry
from policyd.client.policyd_destination import PolicydDestination
from policyd.client.request_outcome import RequestOutcome
from policyd.client.statuses import bare
from policyd.client.targets import Targets, only_grpc
from policyd.command.log_settings import DROPS, SPOOL_LIMIT, SPOOL_SYNC
from policyd.command.serving_settings import MAX_STALENESS, POLICY_TIMEOUT
from policyd.command.worker_clock import WorkerClock
from policyd.decider import Decider
from policyd.decision_log import spool as spools
from policyd.decision_log.process_log import keep_checked, keep_flushed, open_log
from policyd.decision_log.spool import SpoolReader, Sync
from policyd.descriptor.body_memory import Bodies
from policyd.errors import NoDecision, PolicydError, SettingsError
from policyd.keys.defaults import Defaults
from policyd.keys.key_table import KeyTable
from policyd.v1.policy_pb2 import (
    CheckKeyRequest,
    CheckKeyResponse,
    EvaluateRequest,
    EvaluateResponse,
    Outcome,
)

if TYPE_CHECKING:
    from policyd.telemetry.tracing import Span

_log = logging.getLogger(__name__)

_BODIES = 512 * 2**20
"""Bytes of raw bodies that are read at the same time, together."""
_CLOCK_BOUND = 5.0
"""Seconds that this machine's clock may differ from policyd's."""
_START = 10.0
"""Seconds that the start waits for settings."""
_TRUSTED_AS = "grpc"
"""The kind of caller as which evaluations are trusted: one of PolicyService."""


class LocalSettings(NamedTuple):
    """How the log is kept: see LogSettings of decision_log/process_log.py."""

    spool: Path
    spool_limit: int
    spool_sync: Sync
    drop_when_full: bool
    drop_on_error: bool


class LocalPolicyClient:
    """Decides by the settings of a policyd at `target`, which is served with --local-token-file.

    `target`, `credentials` and `on_error` are those of PolicyClient. `token` is the one in that
    file. `timeout` is how long an evaluation may wait for its min_revision, in seconds. `spool` is
    a folder on a local disk for the decisions that policyd does not have yet, up to `spool_limit`
    bytes; processes that decide for one policyd may share it. `spool_sync` says when the disk has a
    decision: see decision_log/spool. With `drop_when_full` and `drop_on_error`, a decision that
    cannot be written is answered, and counted as lost. `telemetry` counts and traces decisions.

    Enter it with `async with`, in the event loop that it is used in, before the first call. Raises
    SettingsError where the folder cannot be used, and ValueError where `target` is not valid.
    """

    def __init__(
        self,
        target: Targets,
        *,
        spool: Path,
        token: str,
        timeout: float = POLICY_TIMEOUT,
        credentials: ChannelCredentials | None = None,
        on_error: OnError = "raise",
        max_staleness: float = MAX_STALENESS,
        spool_limit: int = SPOOL_LIMIT,
        spool_sync: Sync = SPOOL_SYNC,
        drop_when_full: bool = DROPS,
        drop_on_error: bool = DROPS,
        telemetry: LocalTelemetry = NO_TELEMETRY,
    ) -> None:
        self._policyds = Policyds(only_grpc(target, "LocalPolicyClient"), credentials, token)
        self._settings = LocalSettings(
            spool, spool_limit, spool_sync, drop_when_full, drop_on_error
        )
        self._telemetry = telemetry
        self._timeout = timeout
        self._on_error = on_error
        self._max_staleness = max_staleness
        self._clock = WorkerClock(_CLOCK_BOUND, owner="policyd's")
        self.keys = KeyTable(self._clock.time)
        """The settings that it decides by."""
        self._defaults = Defaults(self.keys)
        self._bodies = Bodies(_BODIES)
        # The decider is made once it is entered.
        self._outcomes = LocalOutcomes(lambda entries: self._decider.log_outcomes(entries))  # noqa: PLW0108  # It is looked up late.
        self._working: list[asyncio.Task[None]] = []
        self._closed = False

    async def __aenter__(self) -> Self:
        forking.check()
        forking.use(self)
        folder = self._settings.spool
        spools.claim(folder)
        known = spools.known_database(folder) or ""
        process = secrets.token_hex(6)
        self.log = open_log(self._settings, process, self._clock.time)
        self._decider = Decider(
            *(self.keys, self._defaults, process, self.log.append, self._bodies),
            *(self._clock.time, self._telemetry.metrics),
            traces=self._telemetry.traces,
        )
        self.follower = KeyFollower(
            *(self.keys, self._clock, self._policyds, process, self._expect),
            *(self._max_staleness, known),
        )
        self.destination = PolicydDestination(self._policyds, lambda: self.follower.database)
        self.carrier = Carrier(SpoolReader(folder), self.destination, lambda: self.keys.is_known)
        self._work(
            self.follower.follow(),
            self.carrier.carry(),
            keep_flushed(self.log),
            keep_checked(self.log),
            self.log.keep_synced(),
        )
        async with AsyncExitStack() as begun:
            # A caller that stops waiting leaves no task behind, and no lock.
            begun.push_async_callback(self.close, 0)
            # So that the first requests get decisions, where policyd answers.
            with suppress(TimeoutError):
                async with asyncio.timeout(_START):
                    await self.follower.settled.wait()
            begun.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, carrying: float = 2.0) -> None:
        """Log the outcomes that wait, and carry what is left to policyd, for up to `carrying`
        seconds."""
        if self._closed:
            return
        if forking.is_broken():  # Its channels belong to the parent of this process.
            self._closed = True
            return
        await self._outcomes.reporter.close()
        self._closed = True
        for task in self._working:
            task.cancel()
        for problem in await asyncio.gather(*self._working, return_exceptions=True):
            if isinstance(problem, Exception):
                _log.error("a task of the client had ended early: %r", problem)
        self.log.flush()
        await self.log.close()
        await self.carrier.finish(carrying)
        self._bodies.close()
        forking.in_use.discard(self)

    async def evaluate(
        self, request: EvaluateRequest, step: "Span | None" = None
    ) -> EvaluateResponse:
        """Decide on a request, as a part of the traced `step`. Without a decision, for any cause,
        `on_error` applies: NoDecision is raised, or the answer has no decision_id."""
        try:
            self._check()
            decider = self._decider
            wanted = request.min_revision
            if wanted and wanted > decider.revision:
                await decider.reach(wanted, self._timeout)
            trusted = self._defaults.trusted(_TRUSTED_AS)
            return await decider.answer(request, trusted=trusted, adapter=ADAPTER, context=step)
        except NoDecision as problem:
            return instead(problem, self._on_error)
        except Exception as error:  # noqa: BLE001  # As policyd does, which answers each error.
            return instead(self._undecided(error), self._on_error)

    async def check_key(self, request: CheckKeyRequest) -> CheckKeyResponse:
        """Whether a key is in force, and whether deciding needs the request's body. Raises
        NoDecision."""
        self._check()
        try:
            return self._decider.check_key(request)
        except Exception as error:  # noqa: BLE001  # As above.
            raise self._undecided(error) from None

    def report(self, outcome: Outcome) -> None:
        """Log the outcome of a request that was allowed, as PolicyClient.report() does: it returns
        at once, and a batch is written a little later."""
        self._outcomes.report(outcome)

    def record(self, outcome: RequestOutcome) -> None:
        """Log an outcome that this process has recorded itself, as report() does."""
        self._outcomes.record(outcome)

    @property
    def outcomes_lost(self) -> int:
        """How many outcomes that report() was given are lost."""
        return self._outcomes.reporter.lost

    @property
    def lost(self) -> int:
        """Decisions that were answered and not logged, and entries that policyd did not take."""
        return self.log.lost + self.destination.rejected

    @property
    def staleness(self) -> float | None:
        """How old the settings are, in seconds. None: there are none yet."""
        return self.keys.staleness() if self.keys.is_known else None

    @property
    def unready(self) -> str:
        """Why requests get no decision, in words without a secret; "" where they get one."""
        if not self.keys.is_known:
            return "no settings are known yet: policyd is not followed"
        if self.keys.staleness() > self._max_staleness:
            return "the settings are too old: policyd is not followed"
        if self.log.denies:
            return "the decision log takes no decisions: see the gateway's log"
        return ""

    async def can_reach(self, timeout: float) -> bool:
        """Whether the settings are no older than max_staleness, whatever the `timeout`."""
        return self.keys.is_known and self.keys.staleness() <= self._max_staleness

    async def can_decide(self, timeout: float) -> bool:
        """Whether requests get decisions."""
        return not self.unready

    def _check(self) -> None:
        """Raises NoDecision where there are no settings to decide by."""
        if self._closed:
            raise NoDecision(CLOSED)
        keys = self.keys
        if not keys.is_known:
            raise NoDecision(
                f"policyd has sent no settings yet: {self.follower.problem}", is_outage=True
            )
        if (age := keys.staleness()) > self._max_staleness:
            why = self.follower.problem or "it lags behind what was followed before"
            raise NoDecision(
                f"the settings are {age:.0f} s old (--max-staleness), as policyd is not followed: "
                f"{why}",
                is_outage=True,
            )

    def _undecided(self, error: Exception) -> NoDecision:
        """What policyd would answer for an error of an evaluation, as PolicyClient raises it."""
        if self._telemetry.metrics is not None:
            self._telemetry.metrics.failed(error)
        if isinstance(error, PolicydError):
            return bare(NoDecision(f"policyd gave no decision ({error})"))
        _log.error("an unexpected error", exc_info=error)
        return NoDecision("policyd gave no decision (the log says more)")

    async def _expect(self, identity: str) -> None:
        """Raises StreamFault unless a policyd's database is the one that is followed, and that the
        spool is for."""
        folder = self._settings.spool
        try:
            if self.keys.is_known:
                if identity != self.follower.database:
                    raise StreamFault("its database is another one than was followed so far")
            else:
                await asyncio.to_thread(spools.prepare, folder, identity)
        except SettingsError as error:
            raise StreamFault(str(error)) from None

    def _work(self, *work: Coroutine[Any, Any, None]) -> None:
        self._working += [asyncio.create_task(one) for one in work]


def hold(folder: Path) -> AbstractContextManager[None]:
    """Hold a spool's folder for the processes of one gateway. Raises SettingsError where another
    gateway uses it, or it is a policyd's."""
    return spools.held(folder)
