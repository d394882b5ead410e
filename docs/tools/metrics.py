"""Prints docs/metrics.md: every metric, as policyd/telemetry/catalogue.py declares it.

`make docs` runs it, and a test compares what it prints with the file.
"""

from collections.abc import Iterable

import click

from policyd.telemetry import catalogue
from policyd.telemetry.bounds import CHILDREN, MODELS
from policyd.telemetry.catalogue import Metric

_HEAD = f"""\
<!-- Generated from policyd/telemetry/catalogue.py by `make docs`. Do not edit: change the
declarations there. -->

# Metrics

`policyd serve --metrics HOST:PORT` and `policyd-gateway serve --metrics HOST:PORT` serve metrics
for Prometheus at `/metrics` of that address, for all of their processes together; `/healthz` and
`/readyz` are there, too. [Observability](observability.md#metrics-and-alerts) says how to scrape
them, and which dashboard and alerts come along.

- Counters and histograms begin at 0 as a server starts. A worker that is killed or replaced leaves
  its counts behind; one that is killed takes the last half second with it.
- Gauges tell of processes that run, as of half a second ago. "Of several processes" says how their
  values make one.
- No label holds a secret, an end user or a path, and no client can make ever more series: of names
  that others choose, {MODELS} models and {CHILDREN} combinations of labels are told apart in each
  process, and what comes beyond counts as `other`.
- What a gateway with `--decide local` decides counts at the gateway, by policyd's metrics of
  decisions, errors, steps and outcomes, and with `local` as the adapter. policyd counts none of it,
  so a sum over both servers has each decision once.
- Prometheus counts a histogram's `_bucket`, `_sum` and `_count`.
"""
_MODES = {
    "livesum": "sum",
    "livemin": "least",
    "livemax": "greatest",
    "livemostrecent": "latest",
    "read": "read at each scrape",
    "": "",
}


def page() -> str:
    """The page."""
    own = [one for one in catalogue.ALL if not one.name.startswith("policyd_gateway_")]
    gateway = [one for one in catalogue.ALL if one.name.startswith("policyd_gateway_")]
    parts = [_HEAD, "## policyd\n", _table(own), "## The gateway\n", _table(gateway)]
    return "\n".join(parts)


def _table(metrics: Iterable[Metric]) -> str:
    heading = ("Metric", "Type", "Labels", "Unit", "Of several processes", "Meaning")
    lines = (heading, ["---"] * len(heading), *map(_cells, metrics))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(metric: Metric) -> tuple[str, ...]:
    several = _MODES[metric.mode] or "sum"
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return (f"`{metric.name}`", metric.kind, labels, metric.unit, several, metric.meaning)


if __name__ == "__main__":
    click.echo(page(), nl=False)
