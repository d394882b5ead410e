"""The settings of logs, traces and metrics that policyd and its gateway share. Each function
declares one, for a field of that name."""

from policyd.command.address import Address
from policyd.command.settings import setting


def access_log() -> bool:
    """Whether each request is a line of the log."""
    declared: bool = setting(
        False,
        "Log each request in one line, by the logger access. Requests without an API key in force "
        "are counted instead.",
    )
    return declared


def traces() -> str:
    """The URL of the collector; "": none."""
    declared: str = setting(
        "",
        "The collector to send traces to, by OTLP over HTTP, such as http://127.0.0.1:4318. Needs "
        "the extra policyd[tracing].",
        metavar="URL",
    )
    return declared


def trace_sample() -> float:
    """The share of traces that are sent, 0 to 1."""
    declared: float = setting(
        1.0,
        "The share of the traces that begin here that is sent, from 0 to 1: 0.01 is one in a "
        "hundred. Where a trace comes with a request, its caller has decided.",
        least=0,
        most=1,
    )
    return declared


def metrics() -> Address | None:
    """Where metrics are served; None: nowhere."""
    declared: Address | None = setting(
        None, "Where Prometheus finds metrics, at /metrics; off unless given."
    )
    return declared
