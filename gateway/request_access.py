"""The access log of the gateway: one line for each request whose API key is in force, or that went
upstream; the others are counted."""

from typing import TYPE_CHECKING

from policyd.telemetry.access import AccessLine, AccessLog, plain
from policyd.v1.policy_pb2 import Ending, EvaluateResponse

if TYPE_CHECKING:
    from gateway.exchange import Exchange


class RequestAccess:
    """Writes the lines of one gateway."""

    def __init__(self) -> None:
        self._access = AccessLog()

    def served(self, exchange: "Exchange", now: int) -> None:
        """Write the line of a request that has ended. `now` and the exchange's moments are
        nanoseconds of time.perf_counter_ns()."""
        decision = exchange.decision
        is_known = decision is not None and decision.api_key_id != ""
        if not is_known and exchange.by != "upstream":
            self._access.count_stranger(exchange.status)
            return
        line = AccessLine(
            plain(exchange.scope["method"]),
            plain(exchange.path),
            exchange.status,
            by=exchange.by or "client",
            operation=exchange.operation,
            verdict=exchange.verdict,
            flags=_flags(decision) if decision else "",
            decision_id=decision.decision_id if decision else "",
            trace_id=exchange.trace_id,
            api_key_id=decision.api_key_id if decision else "",
            seconds=_seconds(exchange.began, now),
            request_bytes=exchange.headers.content_length or 0,
            bytes=exchange.sent,
        )
        if exchange.decided:
            line.ask_seconds = _seconds(exchange.asked, exchange.decided)
        if exchange.answered:
            line.upstream_seconds = _seconds(exchange.decided, exchange.answered)
        if exchange.outcome is not None:
            line.ending = _ENDINGS[exchange.outcome.ending]
        self._access.write(line)

    def end(self) -> None:
        """Report the strangers that no line has reported yet."""
        self._access.flush()


_ENDINGS = {value: name.removeprefix("ENDING_").lower() for name, value in Ending.items()}


def _flags(decision: EvaluateResponse) -> str:
    """The types of its flags, as in policyd's own line."""
    return ",".join(dict.fromkeys(one.type for one in decision.flags))


def _seconds(began: int, ended: int) -> float:
    """Between two moments in nanoseconds, to the microsecond."""
    return round((ended - began) / 1e9, 6)
