"""The figures in README.md and docs/performance.md, which each full run writes anew."""

from collections.abc import Mapping

from benchmarks import evaluate, gateway
from benchmarks.findings import Figure, Findings
from benchmarks.processes import ROOT

BEGIN, END = "<!-- Figures of make bench: begin -->", "<!-- Figures of make bench: end -->"
_LEVELS = (1, 16, 64)
_MISSING = "-"
_DECIDE, _WHOLE = "decide, allowed", "Evaluate without gRPC, allowed"
_IN_SHORT = (
    "CPU of a request beside pass-through: asks over gRPC",
    "CPU of a request beside pass-through: asks over HTTP",
    "CPU of a request beside pass-through: decides locally",
    "median latency added, ms: asks over gRPC",
    "median latency added, ms: decides locally",
    "requests/s beside LiteLLM with its own user check",
    "Envoy with the check beside Envoy without: CPU",
)


def write(found: Mapping[str, Findings]) -> None:
    """Put the figures into both pages: a few of them into the README."""
    figures = {name: one for each in found.values() for name, one in each.figures.items()}
    for page, text in PAGES.items():
        page.write_text(replaced(page.read_text(), text(figures)))


def replaced(page: str, text: str) -> str:
    """The page with the text between the two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def in_short(figures: Mapping[str, Figure]) -> str:
    """The table of the README."""
    rows = _rows()
    return "\n".join(_table(figures, {label: rows[label] for label in _IN_SHORT}))


def summary(figures: Mapping[str, Figure]) -> str:
    """The table of the figures that matter most."""
    lines = _table(figures, _rows())
    core = [figures.get(f"core: {name}") for name in (_DECIDE, _WHOLE)]
    if core[0] and core[1]:
        lines += [
            "",
            f"Deciding itself takes {core[0].value:.2g} µs, a whole Evaluate without gRPC",
        ]
        lines[-1] += f" {core[1].value:.2g} µs."
    return "\n".join(lines)


def _rows() -> dict[str, str]:
    """The label of each row, and the name of its figure."""
    allowed, local, over_http = gateway.ALLOWED, gateway.LOCAL, gateway.OVER_HTTP
    beside = "beside pass-through"
    asked = evaluate.ALLOWED
    rows = {
        "CPU of a request beside pass-through: asks over gRPC": f"{allowed} {beside}, CPU",
        "CPU of a request beside pass-through: asks over HTTP": f"{over_http} {beside}, CPU",
        "CPU of a request beside pass-through: decides locally": f"{local} {beside}, CPU",
        "requests/s beside pass-through: asks over gRPC": f"{allowed} {beside}, rate",
        "requests/s beside pass-through: asks over HTTP": f"{over_http} {beside}, rate",
        "requests/s beside pass-through: decides locally": f"{local} {beside}, rate",
        "median latency added, ms: asks over gRPC": f"{allowed}, added p50",
        "median latency added, ms: asks over HTTP": f"{over_http}, added p50",
        "median latency added, ms: decides locally": f"{local}, added p50",
        "requests/s beside Portkey, which checks nothing": (
            f"{allowed} beside {gateway.PORTKEY}, rate"
        ),
        "requests/s beside LiteLLM with its own user check": (
            f"{allowed} beside {gateway.LITELLM}, rate"
        ),
    }
    return {label: f"gateway: {name}" for label, name in rows.items()} | {
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
        "Envoy with the check beside Envoy without: CPU": (
            "envoy: Envoy, checked beside Envoy, no check, CPU"
        ),
    }


def _table(figures: Mapping[str, Figure], rows: Mapping[str, str]) -> list[str]:
    lines = ["| | 1 at once | 16 at once | 64 at once |", "| --- | --- | --- | --- |"]
    for label, name in rows.items():
        cells = [figures.get(f"{name}, at {level}") for level in _LEVELS]
        if any(cells):
            shown = (f"{cell.value:.3g}" if cell else _MISSING for cell in cells)
            lines.append(f"| {label} | {' | '.join(shown)} |")
    return lines


PAGES = {ROOT / "README.md": in_short, ROOT / "docs" / "performance.md": summary}
