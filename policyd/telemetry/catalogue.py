"""Every metric of policyd and its gateway, declared once: the code counts by these, and
docs/metrics.md is made from them.

A label's values come from a set that no client can enlarge: see bounds.py.
"""

from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]
Mode = Literal["livesum", "livemin", "livemax", "livemostrecent", "read"]


class Metric(NamedTuple):
    """A metric. `mode` says how the values of several processes make one gauge; "read": the
    supervisor reads it when Prometheus asks."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    unit: str
    meaning: str
    mode: Mode | Literal[""] = ""


SECONDS = (
    *(0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005),
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)
"""Bounds of policyd's histograms, in seconds: it decides in microseconds, and a disk may take
seconds."""
LONG_SECONDS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
"""Bounds of the gateway's histograms, in seconds: models that reason take minutes."""


def _counter(name: str, labels: str, meaning: str, unit: str = "") -> Metric:
    return Metric(name, "counter", tuple(labels.split()), unit, meaning)


def _timing(name: str, labels: str, meaning: str) -> Metric:
    return Metric(name, "histogram", tuple(labels.split()), "seconds", meaning)


def _gauge(name: str, labels: str, mode: Mode, meaning: str, unit: str = "") -> Metric:
    return Metric(name, "gauge", tuple(labels.split()), unit, meaning, mode)


# --- policyd -----------------------------------------------------------------------------------

DECISIONS = _counter(
    "policyd_decisions_total",
    "adapter operation verdict reason",
    "Decisions. adapter: grpc, batch, envoy, http, authzen; at a gateway with --decide local, "
    "local; verdict: allowed, would_deny, denied; reason: the flag of the policy that denies or "
    "would deny, or key, path, failure; empty where allowed.",
)
RESULTS = _counter(
    "policyd_policy_results_total",
    "policy mode result source",
    "What each policy that was in force found. result: passed, violated, failed; source: key, "
    "route, header, default.",
)
REFUSED_KEYS = _counter(
    "policyd_refused_keys_total",
    "reason",
    "Requests whose API key is not in force. reason: missing, unknown, conflicting.",
)
ERRORS = _counter(
    "policyd_errors_total",
    "reason",
    "Requests that got no decision, by the reason of their error, such as LOG_FULL.",
)
STEP_SECONDS = _timing(
    "policyd_step_seconds",
    "step",
    "Time of a step. step: describe and decide, of one request; log, of one append to the spool.",
)
REQUEST_SECONDS = _timing(
    "policyd_requests_seconds",
    "adapter",
    "Time from a request's arrival to its answer; of batch, for all items together; of local, "
    "within the gateway.",
)
OUTCOMES = _counter(
    "policyd_outcomes_total",
    "status ending",
    "Outcomes that gateways reported. status: the upstream's, none without an answer; ending: "
    "complete, client_left, upstream_broke, no_answer, unknown.",
)
TOKEN_KINDS = ("input", "output", "cached", "cache_write")
"""The values of the label `kind` in both counts of tokens."""
ENTRIES_DROPPED = _counter(
    "policyd_envoy_entries_dropped_total",
    "reason",
    "Entries of Envoy's access log that became no outcome. reason: no_decision (policyd did not "
    "decide about the request), malformed, too_many (in one message), other_protocol (not of "
    "HTTP), not_logged (the log is full).",
)
TOKENS = _counter(
    "policyd_tokens_total",
    "model kind",
    "Tokens of answered requests, counted when they are shipped to the database. model: the name "
    "in the list of public prices, else other; kind: input, output, cached, cache_write. input "
    "includes the latter two.",
    "tokens",
)
COST = _counter(
    "policyd_cost_usd_total",
    "model",
    "Cost of answered requests by public prices, counted when they are shipped to the database.",
    "US dollars",
)
SHIPPED = _counter(
    "policyd_log_shipped_total",
    "",
    "Entries of the decision log that were shipped to the database, those of gateways that decide "
    "by themselves included.",
)
LOST = _counter(
    "policyd_log_lost_total",
    "",
    "Decisions that were answered and not logged (--log-full drop, --log-error drop).",
)
SHIPPING_LAG = _gauge(
    "policyd_shipping_lag_seconds",
    "",
    "livemostrecent",
    "Age of the oldest of the entries that were last shipped to the database, at that moment; 0 "
    "where none wait.",
    "seconds",
)
SPOOL_BYTES = _gauge(
    "policyd_spool_bytes",
    "",
    "livemostrecent",
    "Bytes of entries in the spool that have not been shipped to the database.",
    "bytes",
)
SPOOL_LIMIT = _gauge(
    "policyd_spool_limit_bytes", "", "read", "Bytes that may wait (--spool-limit).", "bytes"
)
SPOOL_AGE = _gauge(
    "policyd_spool_age_seconds",
    "",
    "livemostrecent",
    "Age of the oldest of these entries; 0 where there are none.",
    "seconds",
)
REVISION = _gauge(
    "policyd_settings_revision",
    "",
    "livemin",
    "Revision of the settings in force, of the worker that is furthest behind.",
)
STALENESS = _gauge(
    "policyd_settings_staleness_seconds",
    "",
    "livemax",
    "Time since the database last gave or confirmed the settings, of the worker that has waited "
    "longest.",
    "seconds",
)
KEYS = _gauge(
    "policyd_keys",
    "",
    "livemin",
    "Secrets of API keys, with those that are kept after a rotation and those that have expired, "
    "in the worker that knows the fewest.",
)
DATABASE_UP = _gauge(
    "policyd_database_up",
    "",
    "livemin",
    "1 where each worker's last look at the database succeeded, else 0.",
)
CLOCK_OFFSET = _gauge(
    "policyd_clock_offset_seconds",
    "",
    "livemostrecent",
    "How far this machine's clock is ahead of the database's, by the last measurement.",
    "seconds",
)
FOLLOWERS = _gauge(
    "policyd_local_gateways",
    "",
    "livesum",
    "Processes of gateways that decide by themselves, and follow the settings here.",
)
CONNECTIONS = _gauge(
    "policyd_connections",
    "listener",
    "livesum",
    "Open connections. listener: http. (gRPC does not report its own.)",
)
BODY_BYTES = _gauge(
    "policyd_body_bytes_held", "", "livesum", "Bytes of large bodies that are held.", "bytes"
)
WORKERS = _gauge("policyd_workers", "", "read", "Workers that answer.")
BUILD = _gauge(
    "policyd_build_info", "version commit", "read", "1. The labels name the version that runs."
)

# --- the gateway -------------------------------------------------------------------------------

GATEWAY_REQUESTS = _counter(
    "policyd_gateway_requests_total",
    "operation status by",
    "Requests. status: of the answer, none where the client left before it; by: gateway, policyd "
    "(a denial), upstream, client (it left).",
)
GATEWAY_STEP_SECONDS = _timing(
    "policyd_gateway_step_seconds",
    "step",
    "Time of a step. step: describe, which waits for the body; ask, until policyd has decided; "
    "upstream, until the head of its answer; first_byte, from the request's arrival to that head; "
    "total, from its arrival to its end.",
)
UNDECIDED = _counter(
    "policyd_gateway_undecided_total",
    "outcome",
    "Requests without a decision. outcome: forwarded (--on-policy-error allow), refused.",
)
GATEWAY_TOKENS = _counter(
    "policyd_gateway_tokens_total",
    "model kind",
    "Tokens according to the upstream's answers. model: as the answer names it, for the first 200 "
    "models, else other; kind: as above.",
    "tokens",
)
OUTCOMES_LOST = _counter(
    "policyd_gateway_outcomes_lost_total", "", "Outcomes of requests that policyd did not get."
)
GATEWAY_CONNECTIONS = _gauge(
    "policyd_gateway_connections", "", "livesum", "Open connections of clients."
)
STREAMS = _gauge(
    "policyd_gateway_streams", "", "livesum", "Answers of the upstream that are being passed on."
)
GATEWAY_BODY_BYTES = _gauge(
    "policyd_gateway_body_bytes_held",
    "",
    "livesum",
    "Bytes of large bodies that are held.",
    "bytes",
)
BREAKER_OPEN = _gauge(
    "policyd_gateway_breaker_open",
    "",
    "livesum",
    "Workers that do not connect to the upstream for now, because connecting failed repeatedly.",
)
GATEWAY_REVISION = _gauge(
    "policyd_gateway_settings_revision",
    "",
    "livemin",
    "With --decide local: revision of the settings in force, of the worker furthest behind.",
)
GATEWAY_STALENESS = _gauge(
    "policyd_gateway_settings_staleness_seconds",
    "",
    "livemax",
    "With --decide local: age of the settings, of the worker with the oldest; beyond "
    "--max-staleness requests get no decision.",
    "seconds",
)
GATEWAY_FOLLOWED = _gauge(
    "policyd_gateway_followed",
    "",
    "livemin",
    "With --decide local: 1 where every worker follows policyd's settings, else 0.",
)
GATEWAY_SPOOL_BYTES = _gauge(
    "policyd_gateway_spool_bytes",
    "",
    "livemax",
    "With --decide local: bytes of entries in the spool that policyd does not have.",
    "bytes",
)
GATEWAY_CARRIED = _counter(
    "policyd_gateway_log_carried_total",
    "",
    "With --decide local: entries of the decision log that were handed to policyd.",
)
GATEWAY_LOST = _counter(
    "policyd_gateway_log_lost_total",
    "",
    "With --decide local: decisions that were answered and not logged (--log-full drop, "
    "--log-error drop), and entries that policyd did not take.",
)
GATEWAY_WORKERS = _gauge("policyd_gateway_workers", "", "read", "Workers that answer.")
GATEWAY_BUILD = _gauge(
    "policyd_gateway_build_info",
    "version commit",
    "read",
    "1. The labels name the version that runs.",
)

ALL = tuple(one for one in tuple(globals().values()) if isinstance(one, Metric))
"""All of them, in the order above."""
