"""A real Prometheus scrapes policyd and its gateways, and evaluates each query of the dashboard and
the alerts that come along."""

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import requirements
from tests.support.ports import unused_port
from tests.support.processes import Program
from tests.telemetry.conftest import Measured, address

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "policyd.json").read_text())
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
PANELS = [one for one in DASHBOARD["panels"] if one["type"] != "row"]
QUERIES = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
_COMPARISON = re.compile(r" (==|>|<) (?=[0-9.]+)")
_BEGINNING_WITH_FAULTS = (
    *("PolicydPolicyFails", "PolicydHasNoBackgroundWorker", "GatewayUpstreamFails"),
)
"""Alerts whose series are there in the fault only."""
_NAME = re.compile(r"\bpolicyd_[a-z_]+\b")
_MADE_OF = re.compile(r"_(bucket|sum|count)$")


@pytest.fixture(scope="module")
def promtool() -> Callable[..., str]:
    """Runs promtool, which has to find nothing wrong, and gives what it prints."""
    path = requirements.program("promtool", "prometheus")

    def run(*command: str, given: str = "") -> str:
        done = subprocess.run(
            [path, *command], input=given, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def prometheus(measured: Measured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Prometheus that scrapes the servers, which have had some load."""
    path = requirements.program("prometheus", "prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    config = folder / "prometheus.yml"
    config.write_text(json.dumps(_config(measured)))
    port = unused_port()
    command = [
        *(path, f"--config.file={config}", f"--storage.tsdb.path={folder}/data"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stderr=log) as running:
        try:
            url = f"http://127.0.0.1:{port}"
            _until(lambda: _has_scraped(url), folder / "log")
            _apply_load(measured)
            yield url
        finally:
            running.terminate()


def _config(measured: Measured) -> dict[str, Any]:
    """prometheus.yml as it comes along, with the addresses of here, every half second."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(ALERTS)]
    where: dict[str, list[Program]] = {
        "policyd": [measured.policyd],
        "policyd-gateway": [measured.gateway, measured.local],
    }
    for job in config["scrape_configs"]:
        targets = [address(one) for one in where.pop(job["job_name"])]
        job["static_configs"] = [{"targets": targets}]
    assert not where
    return dict(config)


def _apply_load(measured: Measured) -> None:
    """For some scrapes, so that rates have what they need."""
    until = time.monotonic() + 6
    while time.monotonic() < until:
        measured.load()
        time.sleep(0.1)
    time.sleep(2)


def _until(holds: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)


def _has_scraped(url: str) -> bool:
    try:
        return len(ask(url, "up == 1")) == 3
    except OSError:
        return False


def ask(url: str, query: str) -> list[dict[str, Any]]:
    """The result of a query: its series."""
    asked = urllib.parse.urlencode({"query": query.replace("$__rate_interval", "20s")})
    with urllib.request.urlopen(f"{url}/api/v1/query?{asked}", timeout=60) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return result


def test_the_page_is_as_prometheus_wants_it(
    measured: Measured, promtool: Callable[..., str]
) -> None:
    """promtool finds nothing to say about names, types, units and help."""
    measured.load()
    for program in (measured.policyd, measured.gateway):
        with urllib.request.urlopen(f"http://{address(program)}/metrics", timeout=60) as answer:
            assert promtool("check", "metrics", given=answer.read().decode()) == ""


def test_configuration_and_alerts(promtool: Callable[..., str]) -> None:
    """Prometheus takes the files that come along."""
    promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
    promtool("check", "rules", str(ALERTS))


P = 'instance="p"'
G = 'instance="g"'
SOUND = {
    f'up{{job="policyd",{P}}}': "1x60",
    f'up{{job="policyd-gateway",{G}}}': "1x60",
    f"policyd_workers{{{P}}}": "2x60",
    f'policyd_errors_total{{reason="LOG_FULL",{P}}}': "0x60",
    f'policyd_errors_total{{reason="UNAUTHENTICATED",{P}}}': "0x60",
    f'policyd_errors_total{{reason="INVALID_ARGUMENT",{P}}}': "0+9x60",
    f'policyd_requests_seconds_bucket{{le="0.1",{P}}}': "0+99x60",
    f'policyd_requests_seconds_bucket{{le="1",{P}}}': "0+99x60",
    f'policyd_requests_seconds_bucket{{le="+Inf",{P}}}': "0+99x60",
    f"policyd_database_up{{{P}}}": "1x60",
    f"policyd_settings_staleness_seconds{{{P}}}": "1x60",
    f"policyd_settings_revision{{{P}}}": "7x60",
    'policyd_settings_revision{instance="q"}': "7x60",
    f"policyd_spool_age_seconds{{{P}}}": "1x60",
    f"policyd_spool_bytes{{{P}}}": "1000x60",
    f"policyd_spool_limit_bytes{{{P}}}": "4000x60",
    f"policyd_log_lost_total{{{P}}}": "0x60",
    f"policyd_clock_offset_seconds{{{P}}}": "0.1x60",
    f'policyd_refused_keys_total{{reason="unknown",{P}}}': "0+30x60",
    f'policyd_policy_results_total{{policy="a",result="passed",{P}}}': "0+30x60",
    f"policyd_gateway_workers{{{G}}}": "2x60",
    f'policyd_gateway_undecided_total{{outcome="refused",{G}}}': "0x60",
    f'policyd_gateway_step_seconds_bucket{{step="ask",le="0.25",{G}}}': "0+99x60",
    f'policyd_gateway_step_seconds_bucket{{step="ask",le="1",{G}}}': "0+99x60",
    f'policyd_gateway_step_seconds_bucket{{step="ask",le="+Inf",{G}}}': "0+99x60",
    f'policyd_gateway_requests_total{{by="upstream",status="200",{G}}}': "0+90x60",
    f'policyd_gateway_requests_total{{by="upstream",status="500",{G}}}': "0+1x60",
    f"policyd_gateway_breaker_open{{{G}}}": "0x60",
    f"policyd_gateway_outcomes_lost_total{{{G}}}": "0x60",
}
"""Half an hour of sound servers, a sample every half minute, as promtool writes them."""
FAULTS: dict[str, dict[str, str]] = {
    "": {},
    "PolicydIsDown": {f'up{{job="policyd",{P}}}': "0x60"},
    "PolicydHasNoWorker": {f"policyd_workers{{{P}}}": "0x60"},
    "PolicydGivesNoDecision": {f'policyd_errors_total{{reason="LOG_FULL",{P}}}': "0+1x60"},
    "PolicydRejectsCallers": {f'policyd_errors_total{{reason="UNAUTHENTICATED",{P}}}': "0+1x60"},
    # The series begins with the first failure.
    "PolicydPolicyFails": {
        f'policyd_policy_results_total{{policy="a",result="failed",{P}}}': "_x55 1x5"
    },
    "PolicydDecidesSlowly": {f'policyd_requests_seconds_bucket{{le="0.1",{P}}}': "0+90x60"},
    "PolicydDatabaseIsAway": {f"policyd_database_up{{{P}}}": "0x60"},
    "PolicydSettingsAreStale": {f"policyd_settings_staleness_seconds{{{P}}}": "0+30x60"},
    "PolicydRevisionsDiffer": {f"policyd_settings_revision{{{P}}}": "6x60"},
    "PolicydLogIsNotShipped": {f"policyd_spool_age_seconds{{{P}}}": "0+30x60"},
    "PolicydSpoolFills": {f"policyd_spool_bytes{{{P}}}": "3000x60"},
    "PolicydLosesDecisions": {f"policyd_log_lost_total{{{P}}}": "0+1x60"},
    "PolicydHasNoBackgroundWorker": {f"policyd_spool_bytes{{{P}}}": "_x60"},
    "PolicydClockIsWrong": {f"policyd_clock_offset_seconds{{{P}}}": "-30x60"},
    "PolicydRefusesManyKeys": {f'policyd_refused_keys_total{{reason="unknown",{P}}}': "0+900x60"},
    "GatewayIsDown": {f'up{{job="policyd-gateway",{G}}}': "0x60"},
    "GatewayHasNoWorker": {f"policyd_gateway_workers{{{G}}}": "0x60"},
    "GatewayGetsNoDecision": {
        f'policyd_gateway_undecided_total{{outcome="refused",{G}}}': "0+1x60"
    },
    "GatewayWaitsForDecisions": {
        f'policyd_gateway_step_seconds_bucket{{step="ask",le="0.25",{G}}}': "0+90x60"
    },
    "GatewayUpstreamFails": {
        f'policyd_gateway_requests_total{{by="upstream",status="500",{G}}}': "0+30x60"
    },
    "GatewayCannotConnect": {f"policyd_gateway_breaker_open{{{G}}}": "1x60"},
    "GatewayLosesOutcomes": {f"policyd_gateway_outcomes_lost_total{{{G}}}": "0+1x60"},
}
"""What is otherwise in the fault of each alert; "": nothing."""


@pytest.mark.parametrize("fault", FAULTS)
def test_alerts_fire(promtool: Callable[..., str], tmp_path: Path, fault: str) -> None:
    """Each alert fires in its fault, and no other one with it; none where all is well."""
    series = [{"series": one, "values": values} for one, values in (SOUND | FAULTS[fault]).items()]
    firing = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": "30m",
        "exp_samples": [{"labels": f'{{alertname="{fault}"}}', "value": 1}] if fault else [],
    }
    test = {"interval": "30s", "input_series": series, "promql_expr_test": [firing]}
    cases = tmp_path / "cases.yml"
    cases.write_text(json.dumps({"rule_files": [str(ALERTS)], "tests": [test]}))
    promtool("test", "rules", str(cases))


def test_each_alert_has_a_fault() -> None:
    """The table above leaves no alert out."""
    assert FAULTS.keys() - {""} == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("query", QUERIES)
def test_the_dashboard(prometheus: str, query: str) -> None:
    """Each query of the dashboard gives numbers under a load that has some of everything."""
    found = ask(prometheus, query)
    assert found, query
    assert any(one["value"][1] != "NaN" for one in found), query


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alerts_know_their_metrics(prometheus: str, rule: dict[str, Any]) -> None:
    """All that an alert reads is there, and none fires on two sound servers."""
    for name in _NAME.findall(rule["expr"]):
        assert ask(prometheus, name), name
    assert ask(prometheus, rule["expr"]) == []
    if rule["alert"] not in _BEGINNING_WITH_FAULTS:
        # The number that it compares is known, and not only where it is too large.
        assert ask(prometheus, _COMPARISON.sub(r" \1 bool ", rule["expr"]))


def test_every_metric_is_shown(prometheus: str) -> None:
    """The dashboard leaves no metric of the servers out."""
    shown = {
        _MADE_OF.sub("", name)
        for panel in PANELS
        for target in panel["targets"]
        for name in _NAME.findall(target["expr"])
    }
    served = {
        _MADE_OF.sub("", one["metric"]["__name__"])
        for one in ask(prometheus, '{__name__=~"policyd_.+"}')
    }
    assert served - shown == set()


def test_the_dashboard_is_whole() -> None:
    """Panels have IDs of their own, overlap nowhere, and use the data source that is chosen."""
    assert len({one["id"] for one in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
