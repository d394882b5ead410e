"""What README.md and docs/performance.md say of the figures, written anew by each full run."""

from collections.abc import Mapping

from benchmarks import evaluate, gateway
from benchmarks.findings import Figure, Findings
from benchmarks.processes import ROOT

PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
BEGIN, END = "<!-- Figures of make bench: begin -->", "<!-- Figures of make bench: end -->"
_LEVELS = (1, 16, 64)
_MISSING = "-"
_DECIDE, _WHOLE = "decide, allowed", "Evaluate without gRPC, allowed"


def write(found: Mapping[str, Findings]) -> None:
    """Put the table of figures into both pages."""
    text = summary({name: one for each in found.values() for name, one in each.figures.items()})
    for page in PAGES:
        page.write_text(replaced(page.read_text(), text))


def replaced(page: str, text: str) -> str:
    """The page with the text between the two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def summary(figures: Mapping[str, Figure]) -> str:
    """The table of the figures that matter most."""
    allowed, local, over_http = gateway.ALLOWED, gateway.LOCAL, gateway.OVER_HTTP
    beside = "beside pass-through"
    asked = evaluate.ALLOWED
    rows = {
        "gateway beside its own pass-through: CPU": f"gateway: {allowed} {beside}, CPU",
        "the same: requests/s": f"gateway: {allowed} {beside}, rate",
        "the same: median latency added, ms": f"gateway: {allowed}, added p50",
        "asked over HTTP: CPU": f"gateway: {over_http} {beside}, CPU",
        "the same: requests/s  ": f"gateway: {over_http} {beside}, rate",
        "the same: median latency added, ms  ": f"gateway: {over_http}, added p50",
        "with local decisions: CPU": f"gateway: {local} {beside}, CPU",
        "the same: requests/s ": f"gateway: {local} {beside}, rate",
        "the same: median latency added, ms ": f"gateway: {local}, added p50",
        "requests/s beside Portkey, which checks nothing": (
            f"gateway: {allowed} beside {gateway.PORTKEY}, rate"
        ),
        "requests/s beside LiteLLM with its own user check": (
            f"gateway: {allowed} beside {gateway.LITELLM}, rate"
        ),
        "Evaluate beside an empty method: CPU": f"evaluate: {asked} beside {evaluate.EMPTY}, CPU",
        "Evaluate beside Cerbos without a log: CPU": (
            f"evaluate: {asked} beside {evaluate.CERBOS}, CPU"
        ),
        "Evaluate beside Cerbos with its log in a file: CPU": (
            f"evaluate: {asked} beside {evaluate.CERBOS_LOGGED}, CPU"
        ),
        "100 decisions in a call beside Cerbos without a log: decisions per CPU second": (
            f"evaluate: BatchEvaluate of {evaluate.BATCHES[-1]} beside {evaluate.CERBOS}, "
            "decisions per CPU second"
        ),
        "Envoy with the check beside Envoy without: requests/s": (
            "envoy: Envoy, checked beside Envoy, no check, rate"
        ),
        "the same: CPU": "envoy: Envoy, checked beside Envoy, no check, CPU",
    }
    lines = ["| | 1 at once | 16 at once | 64 at once |", "| --- | --- | --- | --- |"]
    for label, name in rows.items():
        cells = [figures.get(f"{name}, at {level}") for level in _LEVELS]
        if any(cells):
            shown = (f"{cell.value:.3g}" if cell else _MISSING for cell in cells)
            lines.append(f"| {label.strip()} | {' | '.join(shown)} |")
    core = [figures.get(f"core: {name}") for name in (_DECIDE, _WHOLE)]
    if core[0] and core[1]:
        lines += [
            "",
            f"Deciding itself takes {core[0].value:.2g} µs, a whole Evaluate without gRPC",
        ]
        lines[-1] += f" {core[1].value:.2g} µs."
    return "\n".join(lines)
