"""The gateway beside its own pass-through, which asks no policy, and beside other gateways."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import peers, traffic
from benchmarks.deployment import GATEWAY, LOCAL_FLAG, Deployment, knows, start_gateway
from benchmarks.findings import Findings, cpu_chart, rate_chart
from benchmarks.load import LoadFailed, Target, http_target
from benchmarks.open_loop import send_at
from benchmarks.processes import Program, Tree
from benchmarks.rounds import (
    Case,
    Comparison,
    Plan,
    Turn,
    compare,
    comparison_table,
    ratios,
    table,
    with_spread,
)
from benchmarks.upstream import upstream

PASS_THROUGH, ALLOWED, DENIED = "pass-through", "allowed", "denied (422)"
OVER_HTTP = "allowed, asked over HTTP"
LOCAL, LOCAL_DENIED = "local, allowed", "local, denied (422)"
PORTKEY, LITELLM = "Portkey, no policy", "LiteLLM, its user check"
_SIZES = {"300 B": 300, "20 kB": 20_000, "1 MB": 1_000_000}
_LARGE_CONCURRENCY = 16
_TAKES_URL = "http://HOST:PORT"
"""Words in the help of a gateway that asks over HTTP, too."""
_OPEN_LOOP = 2
"""How many times as long as a turn at closed loop one at a constant rate is."""


class _Ours(NamedTuple):
    """Our programs."""

    deployment: Deployment
    upstream: Program
    gateways: Mapping[str, Program]
    """By the case of a request that is allowed."""

    def case(self, name: str, by: str, body: bytes, status: int = 200) -> Case:
        """A case in which the gateway of the case `by` is sent this body."""
        gateway = self.gateways[by]
        headers = dict(traffic.headers(self.deployment.key))
        target = http_target(gateway.places[0] + traffic.PATH, body, headers, status)
        parts, beside = {GATEWAY: Tree(gateway.pid)}, {"upstream": Tree(self.upstream.pid)}
        if by == PASS_THROUGH:
            return Case(name, target, parts, beside)
        return Case(
            name, target, {**parts, **self.deployment.parts}, beside, self.deployment.shipped
        )


async def run(folder: Path, plan: Plan) -> Findings:
    """Measure. `folder` is for databases and configurations."""
    findings = Findings()
    with ExitStack() as running:
        stub = running.enter_context(upstream(folder))
        ours = _start(folder, running, stub, findings)
        cases = _cases(ours) + _peers(folder, running, stub, findings)
        found = await compare(cases, plan.part(0.75))
        _note(found, findings)
        closed = found[min(1, len(found) - 1)]
        await _open_loop(cases, closed, plan, findings)
        await _sizes(ours, plan, findings)
    return findings


def _start(folder: Path, running: ExitStack, stub: Program, findings: Findings) -> _Ours:
    upstream_url = stub.places[0]
    token = folder / "local-token"
    is_local = knows("policyd", LOCAL_FLAG) and knows("policyd-gateway", "--decide")
    flags = (LOCAL_FLAG, str(token)) if is_local else ()
    if is_local:
        token.touch(0o600)
        token.write_text(secrets.token_urlsafe(32))
    deployment = Deployment(folder / "policyd", running, *flags, over_http=True)
    passing = ("python", "-m", "benchmarks.pass_through")
    gateways = {
        PASS_THROUGH: start_gateway(running, deployment.place, upstream_url, command=passing),
        ALLOWED: start_gateway(running, deployment.place, upstream_url),
    }
    if knows("policyd-gateway", _TAKES_URL):
        at = f"http://{deployment.http}"
        gateways[OVER_HTTP] = start_gateway(running, at, upstream_url)
    else:
        findings.absent.append("asking over HTTP: this version's --policyd takes no URL")
    if is_local:
        spool = deployment.add_spool(folder / "gateway-spool")
        local = ("--decide", "local", "--spool", str(spool), "--policyd-token-file", str(token))
        gateways[LOCAL] = start_gateway(running, deployment.place, upstream_url, *local)
    else:
        findings.absent.append("local decisions: this version has no `--decide local`")
    return _Ours(deployment, stub, gateways)


def _cases(ours: _Ours) -> list[Case]:
    chat, anonymous = traffic.body(300), traffic.body(300, user=None)
    cases = [
        ours.case(PASS_THROUGH, PASS_THROUGH, chat),
        ours.case(ALLOWED, ALLOWED, chat),
        ours.case(DENIED, ALLOWED, anonymous, 422),
    ]
    if OVER_HTTP in ours.gateways:
        cases.append(ours.case(OVER_HTTP, OVER_HTTP, chat))
    if LOCAL in ours.gateways:
        cases.append(ours.case(LOCAL, LOCAL, chat))
        cases.append(ours.case(LOCAL_DENIED, LOCAL, anonymous, 422))
    return cases


def _peers(folder: Path, running: ExitStack, stub: Program, findings: Findings) -> list[Case]:
    url, beside = stub.places[0], {"upstream": Tree(stub.pid)}
    starts: dict[str, Callable[[], tuple[Program, Target]]] = {
        PORTKEY: partial(peers.portkey, running, url),
        LITELLM: partial(peers.litellm, running, url, folder),
    }
    cases = []
    for name, start in starts.items():
        try:
            program, target = start()
        except (peers.Absent, RuntimeError) as error:
            findings.absent.append(str(error))
        else:
            cases.append(Case(name, target, {GATEWAY: Tree(program.pid)}, beside))
    return cases


def _note(found: Sequence[Comparison], findings: Findings) -> None:
    title = "The gateway beside its own pass-through and other gateways, closed loop, 300 B"
    findings.tables.append(comparison_table(title, found, PASS_THROUGH))
    findings.charts.append(cpu_chart("gateway-cpu", "What a request costs", found))
    findings.charts.append(rate_chart("gateway-rate", "Requests a second", found))
    findings.failures(found)
    for one in found:
        for case in (ALLOWED, DENIED, OVER_HTTP, LOCAL, LOCAL_DENIED):
            pair = (case, PASS_THROUGH)
            findings.beside(one, f"gateway: {case} beside pass-through, CPU", _total, pair)
            findings.beside(
                one, f"gateway: {case} beside pass-through, rate", _rate, pair, "higher"
            )
        for case in (ALLOWED, OVER_HTTP, LOCAL):
            _added(one, case, findings)
            for peer in (PORTKEY, LITELLM):
                name = f"gateway: {case} beside {peer}, rate"
                findings.beside(one, name, _rate, (case, peer), "higher")


def _added(one: Comparison, case: str, findings: Findings) -> None:
    """The median latency that the case adds to the pass-through's."""
    if case in one.turns and PASS_THROUGH in one.turns:
        pairs = zip(one.turns[case], one.turns[PASS_THROUGH], strict=True)
        added = [1e3 * (turn.p50 - bare.p50) for turn, bare in pairs]
        findings.add(f"gateway: {case}, added p50, at {one.concurrency}", added, "ms")


def _total(turn: Turn) -> float:
    return turn.total


def _rate(turn: Turn) -> float:
    return turn.rate


async def _open_loop(
    cases: Sequence[Case], closed: Comparison, plan: Plan, findings: Findings
) -> None:
    """Each at half of its own rate at closed loop, but at no more than half of the gateway's."""
    rates = {name: median(map(_rate, turns)) for name, turns in closed.turns.items()}
    rows = []
    for case in cases:
        if case.name not in rates:
            continue
        rate = min(rates[case.name], rates.get(ALLOWED, rates[case.name])) / 2
        try:
            loads = [
                await send_at(case.target, rate, _OPEN_LOOP * plan.seconds)
                for _ in range(max(1, plan.rounds // 2))
            ]
            await case.settle()
        except (LoadFailed, TimeoutError) as error:
            findings.absent.append(f"{case.name}, open loop: {error}")
            continue
        cells = [
            with_spread(1e3 * one.percentile(share) for one in loads)
            for share in (0.5, 0.99, 0.999)
        ]
        client = median(1e6 * one.client / one.calls for one in loads)
        rows.append((case.name, f"{rate:.0f}", *cells, f"{client:.0f}"))
        p99s = [1e3 * one.percentile(0.99) for one in loads]
        findings.add(f"gateway: {case.name}, p99 at half load, open loop", p99s, "ms")
    title = (
        f"Open loop: a constant rate, half of that at {closed.concurrency} at once "
        "(times from the moment that a request was due)"
    )
    columns = ("what", "requests/s", "p50 ms", "p99 ms", "p99.9 ms", "(client, CPU µs each)")
    findings.tables.append(table(title, columns, rows))


async def _sizes(ours: _Ours, plan: Plan, findings: Findings) -> None:
    """Bodies of several sizes."""
    short = plan._replace(rounds=min(plan.rounds, 3), concurrencies=(_LARGE_CONCURRENCY,))
    rows = []
    for size, length in _SIZES.items():
        body = traffic.body(length)
        cases = [ours.case(name, name, body) for name in ours.gateways]
        (one,) = await compare(cases, short)
        findings.failures([one])
        for case, turns in one.turns.items():
            cpu = f"{1e3 * median(map(_total, turns)):.2f}"
            bare = one.turns.get(PASS_THROUGH)
            beside = with_spread(ratios(turns, bare, _total)) if bare else "-"
            times = [f"{1e3 * median(values):.2f}" for values in _percentiles(turns)]
            rows.append((size, case, f"{median(map(_rate, turns)):.0f}", *times, cpu, beside))
        for case in (ALLOWED, OVER_HTTP, LOCAL):
            name = f"gateway: {case} beside pass-through, {size}, CPU"
            findings.beside(one, name, _total, (case, PASS_THROUGH))
    columns = ("body", "what", "calls/s", "p50 ms", "p99 ms", "CPU ms each", "beside pass-through")
    findings.tables.append(table(f"Bodies, {_LARGE_CONCURRENCY} at once", columns, rows))


def _percentiles(turns: Sequence[Turn]) -> list[list[float]]:
    return [[turn.p50 for turn in turns], [turn.p99 for turn in turns]]
