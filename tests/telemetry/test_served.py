"""What policyd and its gateway serve at --metrics: real processes, several workers."""

import json
import os
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trustme

from policyd.telemetry import catalogue
from policyd.telemetry.bounds import MODELS
from tests.support.http_posts import post
from tests.support.processes import Policyd, Program, run
from tests.support.stack import Gateway
from tests.support.waiting import wait_until
from tests.telemetry.conftest import Measured, address, scrape, total

_IGNORED = {"le"}
_COUNTED = {
    "policyd": ("policyd_decisions_total", "policyd_workers"),
    "gateway": ("policyd_gateway_requests_total", "policyd_gateway_workers"),
    "local": ("policyd_decisions_total", "policyd_gateway_workers"),
}
"""What each server counts, and the gauge of its workers."""


def children(program: Program) -> list[int]:
    """The processes that it has started."""
    found = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text()
    return [int(one) for one in found.split()]


def is_worker(process: int) -> bool:
    """Whether it is a worker, of policyd or the gateway."""
    return b"worker" in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[2]


def test_names_and_labels(measured: Measured) -> None:
    """Each metric that is served is in the catalogue, with its type and labels, and none of the
    catalogue is missing."""
    measured.load()
    expected = {one.name: one for one in catalogue.ALL}
    wait_until(lambda: total(measured.policyd, "policyd_cost_usd_total") > 0)
    wait_until(lambda: total(measured.policyd, "policyd_outcomes_total") > 0)
    served = scrape(measured.policyd) | scrape(measured.gateway) | scrape(measured.local)
    for family in served.values():
        is_counter = family.type == "counter"
        declared = expected.pop(f"{family.name}_total" if is_counter else family.name)
        assert family.type == declared.kind
        assert family.documentation == declared.meaning
        for sample in family.samples:
            assert sample.labels.keys() - _IGNORED == set(declared.labels), sample
    assert not expected


def test_no_secret_no_user_no_path(measured: Measured) -> None:
    """Neither a key nor its ID, a user or a path is on the page."""
    measured.chat(measured.enforcing, user="alice-in-the-labels")
    wait_until(lambda: total(measured.gateway, "policyd_gateway_requests_total", status="200") > 0)
    for program in (measured.policyd, measured.gateway, measured.local):
        with urllib.request.urlopen(f"http://{address(program)}/metrics", timeout=60) as answer:
            page = answer.read().decode()
        for text in (measured.enforcing, "key_", "alice", "/v1/", "127.0.0.1"):
            assert text not in page


def test_each_request_counts_once(measured: Measured) -> None:
    """Over all workers, a request counts once at the gateway and once as a decision at policyd,
    with its verdict and reason."""
    denied = {"verdict": "denied", "reason": "policy_enforce_user_ids"}

    def counts() -> tuple[float, ...]:
        policyd, gateway = measured.policyd, measured.gateway
        return (
            total(policyd, "policyd_decisions_total", verdict="allowed", reason=""),
            total(policyd, "policyd_decisions_total", **denied),
            total(policyd, "policyd_decisions_total", verdict="would_deny"),
            total(policyd, "policyd_policy_results_total", result="violated", mode="enforce"),
            total(gateway, "policyd_gateway_requests_total", by="upstream", status="200"),
            total(gateway, "policyd_gateway_requests_total", by="policyd", status="422"),
            total(gateway, "policyd_gateway_step_seconds_count", step="total"),
        )

    time.sleep(1)
    before = counts()
    for _ in range(5):
        measured.chat(measured.enforcing, user="alice")
        measured.chat(measured.enforcing)
        measured.chat(measured.audited)
    expected = tuple(a + b for a, b in zip(before, (5, 5, 5, 5, 10, 5, 15), strict=True))
    wait_until(lambda: counts() == expected)


def test_local_decisions_count_once(measured: Measured) -> None:
    """What a gateway decides by itself counts there, by policyd's names, for all of its workers
    together; policyd, which is given the log of it, counts none of it as its own."""
    policyd, local = measured.policyd, measured.local
    denied = {"verdict": "denied", "reason": "policy_enforce_user_ids", "adapter": "local"}

    def counts() -> tuple[float, ...]:
        return (
            total(local, "policyd_decisions_total", verdict="allowed", adapter="local"),
            total(local, "policyd_decisions_total", **denied),
            total(local, "policyd_decisions_total", verdict="would_deny"),
            total(local, "policyd_decisions_total", reason="key"),
            total(local, "policyd_refused_keys_total", reason="unknown"),
            total(local, "policyd_policy_results_total", result="violated", mode="enforce"),
            total(local, "policyd_outcomes_total", status="200", ending="complete"),
            total(local, "policyd_requests_seconds_count", adapter="local"),
            total(local, "policyd_step_seconds_count", step="describe"),
            total(local, "policyd_step_seconds_count", step="decide"),
            total(policyd, "policyd_decisions_total"),
            total(policyd, "policyd_refused_keys_total"),
            total(policyd, "policyd_outcomes_total"),
        )

    time.sleep(1)
    before, carried = counts(), total(local, "policyd_gateway_log_carried_total")
    for _ in range(5):
        measured.chat(measured.enforcing, user="alice", gateway=local)
        measured.chat(measured.enforcing, gateway=local)
        measured.chat(measured.audited, gateway=local)
        measured.chat("up-never-issued", gateway=local)
    wait_until(lambda: total(local, "policyd_gateway_log_carried_total") >= carried + 25)
    wait_until(lambda: counts()[:10] != before[:10])
    added = (5, 5, 5, 5, 5, 5, 10, 20, 20, 20, 0, 0, 0)
    expected = tuple(a + b for a, b in zip(before, added, strict=True))
    wait_until(lambda: counts() == expected)


def test_tokens_and_cost(measured: Measured) -> None:
    """The tokens that answers name count by model, at the gateway and as they are shipped, where
    they have a price."""
    measured.chat(measured.enforcing, user="alice")
    wait_until(lambda: total(measured.policyd, "policyd_cost_usd_total", model="gpt-4o-mini") > 0)
    for program, name in (
        (measured.policyd, "policyd_tokens_total"),
        (measured.gateway, "policyd_gateway_tokens_total"),
    ):
        assert total(program, name, model="gpt-4o-mini", kind="output") > 0


def test_tokens_of_local_decisions(measured: Measured) -> None:
    """Tokens of local decisions count at policyd, which prices them, like those of all other
    gateways."""
    policyd, local = measured.policyd, measured.local

    def counts() -> tuple[float, ...]:
        return (
            total(policyd, "policyd_tokens_total", model="gpt-4o-mini", kind="output"),
            total(local, "policyd_gateway_tokens_total", model="gpt-4o-mini", kind="output"),
            total(policyd, "policyd_log_shipped_total"),
            total(local, "policyd_gateway_log_carried_total"),
        )

    time.sleep(1)
    before, cost = counts(), total(policyd, "policyd_cost_usd_total", model="gpt-4o-mini")
    for _ in range(3):
        assert measured.chat(measured.enforcing, user="alice", gateway=local) == 200
    wait_until(lambda: counts()[3] == before[3] + 6)
    wait_until(lambda: counts()[2] == before[2] + 6)
    tokens = [after - was for after, was in zip(counts(), before, strict=True)][:2]
    assert tokens[0] == tokens[1] > 0
    assert total(policyd, "policyd_cost_usd_total", model="gpt-4o-mini") > cost


def test_hostile_names(measured: Measured) -> None:
    """However many models, methods and paths clients name, the series stay few."""
    for number in range(MODELS + 50):
        measured.chat(measured.enforcing, user="alice", model=f"stranger-{number}")
    sent = MODELS + 50
    for number in range(50):
        url = f"{measured.gateway.url}/v1/stranger-{number}"
        request = urllib.request.Request(url, method=f"METHOD{number}")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=60)
    wait_until(lambda: total(measured.gateway, "policyd_gateway_step_seconds_count") > sent)
    for program in (measured.policyd, measured.gateway, measured.local):
        series = sum(len(one.samples) for one in scrape(program).values())
        # Two workers tell MODELS models apart, of four kinds of tokens each.
        assert series < 2 * 4 * MODELS + 1000
    assert total(measured.policyd, "policyd_tokens_total", model="other") > 0


def test_gauges(measured: Measured) -> None:
    """Gauges show the state of the servers."""
    policyd = measured.policyd
    assert total(policyd, "policyd_workers") == 2
    assert total(policyd, "policyd_database_up") == 1
    assert total(policyd, "policyd_keys") == 2
    assert total(policyd, "policyd_settings_revision") > 1
    assert total(policyd, "policyd_settings_staleness_seconds") < 60
    assert total(policyd, "policyd_build_info") == 1
    assert total(measured.gateway, "policyd_gateway_workers") == 2
    port = int(measured.gateway.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)):
        wait_until(lambda: total(measured.gateway, "policyd_gateway_connections") > 0)


def test_streams(measured: Measured) -> None:
    """An answer that is being passed on counts as one, until its end."""
    measured.upstream.hold()
    body = {"model": "m", "user": "alice", "stream": True, "messages": []}
    request = urllib.request.Request(
        f"{measured.gateway.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "x-usagepanda-api-key": measured.enforcing},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        wait_until(lambda: total(measured.gateway, "policyd_gateway_streams") == 1)
        measured.upstream.let_go()
        answer.read()
    wait_until(lambda: total(measured.gateway, "policyd_gateway_streams") == 0)


@pytest.mark.parametrize("which", _COUNTED)
def test_a_worker_is_killed(measured: Measured, which: str) -> None:
    """The counts of a killed worker stay, its gauges go, and there is one worker less."""
    program: Program = getattr(measured, which)
    name, workers = _COUNTED[which]
    measured.load()
    time.sleep(1)
    before = total(program, name)
    assert before > 0
    killed = set(filter(is_worker, children(program)))
    for process in killed:
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: not killed & set(children(program)))
    assert total(program, name) >= before
    wait_until(lambda: total(program, workers) == 2)
    measured.load()
    wait_until(lambda: total(program, name) > before)


@pytest.mark.parametrize("which", _COUNTED)
def test_workers_are_replaced(measured: Measured, which: str) -> None:
    """At SIGHUP no count is lost, and gauges are those of the new workers alone."""
    program: Program = getattr(measured, which)
    name, _ = _COUNTED[which]
    time.sleep(1)
    before, old = total(program, name), set(children(program))
    program.send(signal.SIGHUP)
    wait_until(lambda: "all workers are replaced" in "".join(program.errors))
    wait_until(lambda: not old & set(children(program)))
    assert total(program, name) == before
    if which == "policyd":
        wait_until(lambda: total(program, "policyd_keys") == 2)


def test_scrapes_that_hang(measured: Measured) -> None:
    """Scrapers that say nothing, or do not read, hold up neither requests nor other scrapes."""
    host, port = address(measured.gateway).split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(20)]
    deaf = [socket.create_connection((host, int(port))) for _ in range(5)]
    for one in deaf:
        one.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
    assert measured.chat(measured.enforcing, user="alice") == 200
    assert total(measured.gateway, "policyd_gateway_workers") == 2
    for one in (*silent, *deaf):
        one.close()


def test_only_metrics_are_there(measured: Measured) -> None:
    """The port has the metrics and the probes, and nothing else."""
    at = f"http://{address(measured.policyd)}"
    assert urllib.request.urlopen(f"{at}/readyz", timeout=60).status == 200
    for path, status in (("/", 404), ("/v1/check", 404)):
        with pytest.raises(urllib.error.HTTPError, match=str(status)):
            urllib.request.urlopen(at + path, timeout=60)
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(f"{at}/metrics", b"", timeout=60)


@pytest.mark.slow
def test_a_single_worker(tmp_path: Path) -> None:
    """The worker inside of the supervisor's process counts too, also once SIGHUP has moved it; and
    at the end no folder is left."""
    policyd = Policyd(tmp_path, "--http", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    folder = folder_of(policyd)
    key = policyd.create_key("enforce")
    check = f"http://{policyd.http}/v1/check/v1/chat/completions"
    named = {"x-usagepanda-api-key": key}
    assert post(check, {"model": "m"}, named) == 422
    wait_until(lambda: total(policyd, "policyd_decisions_total", adapter="http") == 1)
    policyd.send(signal.SIGHUP)
    wait_until(lambda: "all workers are replaced" in "".join(policyd.errors))
    assert post(check, {"model": "m"}, named) == 422
    wait_until(lambda: total(policyd, "policyd_decisions_total", adapter="http") == 2)
    policyd.create_key("enforce")
    # The first worker's gauges would hold this one down: it knew one key.
    wait_until(lambda: total(policyd, "policyd_keys") == 2)
    assert folder.is_dir()
    assert policyd.stop() == 0
    assert not folder.exists()


def folder_of(program: Program) -> Path:
    """The folder of its metrics, which its background worker knows by the environment."""
    [process, *_] = children(program)
    variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    name = b"PROMETHEUS_MULTIPROC_DIR="
    return Path(next(one for one in variables if one.startswith(name))[len(name) :].decode())


@pytest.mark.slow
def test_tls(tmp_path: Path) -> None:
    """Where the gateway has a certificate, metrics have it, too, and at SIGHUP the new one."""
    authorities = [trustme.CA() for _ in range(2)]
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    flags = ("--tls-cert", str(cert), "--tls-key", str(key), "--metrics", "127.0.0.1:0")
    issue(authorities[0], cert, key)
    gateway = Gateway("127.0.0.1:1", "http://127.0.0.1:1", *flags)
    assert trusted(gateway, authorities) == [True, False]
    issue(authorities[1], cert, key)
    gateway.send(signal.SIGHUP)
    wait_until(lambda: trusted(gateway, authorities) == [False, True])
    assert gateway.stop() == 0


def issue(authority: trustme.CA, cert: Path, key: Path) -> None:
    """Write a certificate for 127.0.0.1."""
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(key)
    own.cert_chain_pems[0].write_to_path(cert)


def trusted(gateway: Gateway, authorities: list[trustme.CA]) -> list[bool]:
    """Whether a scraper that trusts each authority gets the metrics."""
    found = []
    for one in authorities:
        context = ssl.create_default_context(cadata=one.cert_pem.bytes().decode())
        try:
            url = f"https://{address(gateway)}/metrics"
            urllib.request.urlopen(url, context=context, timeout=60).close()
            found.append(True)
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLCertVerificationError):
                raise
            found.append(False)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", ["policyd", "policyd-gateway"])
def test_a_port_that_is_taken(tmp_path: Path, command: str) -> None:
    """The error names the flag, the cause and the fix."""
    database = ("--database-url", f"sqlite:///{tmp_path}/p.db", "--grpc", "127.0.0.1:0")
    flags = database if command == "policyd" else ("--listen", "127.0.0.1:0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(command, "serve", *flags, "--metrics", f"127.0.0.1:{port}")
    assert done.returncode == 1
    error = done.stderr.decode()
    assert f"--metrics 127.0.0.1:{port} cannot be listened on" in error
    assert "another program has the port" in error
    assert "give --metrics another port" in error
    assert "Traceback" not in error
