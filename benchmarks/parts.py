"""The parts of the benchmark: what `make bench` runs, in this order, and for how long.

A part is a module here with `async def run(folder, plan)`, which returns Findings or Markdown; or
with `def measure(folder, plan)`, which returns figures by name. Adding one is a line.
"""

from typing import NamedTuple

from benchmarks.rounds import Plan


class Part(NamedTuple):
    """A part: its plan, and the seconds that it may take."""

    plan: Plan
    limit: float
    about: str


PARTS = {
    "gateway": Part(
        Plan(rounds=4, seconds=2), 390, "The gateway beside its pass-through and other gateways"
    ),
    "evaluate": Part(Plan(rounds=3, seconds=2), 240, "Evaluate beside Cerbos, and batches"),
    "envoy": Part(Plan(rounds=4, seconds=2), 90, "Envoy with the check beside Envoy"),
    "bodies": Part(Plan(rounds=3, seconds=2), 120, "Large bodies, and small ones beside them"),
    "keys": Part(Plan(rounds=1, seconds=0, rows=1_000_000), 240, "Up to a million keys"),
    "shipping": Part(Plan(rounds=3, seconds=2, rows=20_000), 100, "Shipping the decision log"),
    "core": Part(Plan(rounds=9, seconds=0.02), 60, "Deciding without any network"),
    "log": Part(Plan(rounds=3, seconds=1, concurrencies=(16,)), 60, "The decision log beside none"),
    "watched": Part(
        Plan(rounds=3, seconds=1, concurrencies=(16,)), 90, "Metrics, access log, traces"
    ),
    "start": Part(Plan(rounds=2, seconds=0), 90, "From exec to the first decision"),
    "hostile": Part(Plan(rounds=3, seconds=0), 120, "What a client without a key can do"),
    "store": Part(Plan(rounds=10, seconds=0, rows=50_000), 90, "The log's queries"),
}
QUICK = Plan(rounds=2, seconds=0.3, rows=5_000, concurrencies=(16,))
"""In place of each part's own plan, to try it: the figures mean little."""
CHECKED = ("gateway", "evaluate", "envoy")
"""The parts that `make bench-check` runs, ..."""
CHECK = Plan(rounds=3, seconds=1, concurrencies=(16,))
"""... and how."""
