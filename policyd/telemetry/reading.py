"""Gauges that are read when Prometheus asks."""

from collections.abc import Iterable

from policyd.telemetry.catalogue import Metric

Reading = Iterable[tuple[Metric, tuple[str, ...], float]]
"""Gauges: each with the values of its labels, and its own value."""
