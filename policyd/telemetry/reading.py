"""Gauges that are read as Prometheus asks."""

from collections.abc import Iterable

from policyd.telemetry.catalogue import Metric

Reading = Iterable[tuple[Metric, tuple[str, ...], float]]
"""Gauges: each with its labels' values and its own."""
