"""The Helm chart: rendered with each of its example values, and looked at."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from gateway.cli import OPTIONS as GATEWAY
from gateway.cli import main as policyd_gateway
from gateway.serve import serve as gateway_serve
from gateway.settings import Settings
from policyd.build_info import version
from policyd.cli.main import main as policyd
from policyd.cli.options import OPTIONS as POLICYD
from policyd.cli.serve import serve as policyd_serve
from policyd.command.settings import build
from policyd.settings import ServerSettings
from tests.deploy.tools import ROOT, run, tool

CHART = ROOT / "deploy/chart"
VALUES = sorted((CHART / "ci").glob("*.yaml"))
NAMES = [one.stem.removesuffix("-values") for one in VALUES]
VERSIONS = ("1.27", "1.33", "1.37")
"""Kubernetes' versions: the oldest that the chart takes, one of today, and the newest known."""
Resource = dict[str, Any]


def rendered(*arguments: str) -> str:
    """What `helm template` makes of the chart."""
    done = run(*_template(*arguments))
    assert done.returncode == 0, done.stderr
    return done.stdout


def _template(*arguments: str) -> tuple[str, ...]:
    place = ("--namespace", "policyd", "--kube-version", "1.33.0")
    return (tool("helm"), "template", "policyd", str(CHART), *place, *arguments)


@pytest.fixture(scope="module", params=VALUES, ids=NAMES)
def text(request: pytest.FixtureRequest) -> str:
    return rendered("--values", str(request.param))


@pytest.fixture(scope="module")
def resources(text: str) -> list[Resource]:
    return [one for one in yaml.safe_load_all(text) if one]


def pods(resources: list[Resource]) -> Iterator[tuple[str, Resource]]:
    """The name of each pod template, and what it says."""
    for one in resources:
        if one["kind"] in ("Deployment", "StatefulSet"):
            yield one["metadata"]["name"], one["spec"]["template"]


def test_it_installs_this_version() -> None:
    """Without a tag of its own the chart takes the image of this version."""
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version()


@pytest.mark.parametrize("values", VALUES, ids=NAMES)
def test_helm_lints_it(values: Path) -> None:
    done = run(tool("helm"), "lint", "--strict", str(CHART), "--values", str(values))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_would_take_it(text: str, version: str, tmp_path: Path) -> None:
    """Each resource follows Kubernetes' own schema, with no field that it does not know."""
    file = tmp_path / "rendered.yaml"
    file.write_text(text)
    done = run(tool("kubernetes-validate"), "--strict", "-k", version, str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    passed = [line for line in (done.stdout + done.stderr).splitlines() if " passed " in line]
    ours = [one for one in yaml.safe_load_all(text) if one and "coreos" not in one["apiVersion"]]
    assert len(passed) == len(ours)


def test_the_servers_take_their_settings(resources: list[Resource], tmp_path: Path) -> None:
    """Each ConfigMap holds settings that its server accepts, and that fit together."""
    folder = tmp_path / "etc"
    for secret in ("admin/token", "caller/token", "upstream/key"):
        (folder / secret).parent.mkdir(parents=True)
        (folder / secret).write_text("0123456789abcdef0123456789abcdef")
    found = {one["metadata"]["name"]: one for one in resources if one["kind"] == "ConfigMap"}
    for name, one in found.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(one["data"]["config.yaml"].replace("/etc/policyd", str(folder)))
        settings: ServerSettings | Settings
        if name == "policyd":
            settings = build(ServerSettings, _given(policyd_serve, file))
        else:
            settings = build(Settings, _given(gateway_serve, file))
        assert settings.drain == yaml.safe_load(file.read_text())["drain"]


def test_the_servers_are_told_of_them(resources: list[Resource]) -> None:
    """The variables in a container's environment are settings of its server."""
    policyd.load()
    policyd_gateway.load()
    known = {"policyd": POLICYD.variables, "gateway": GATEWAY.variables}
    for _, pod in pods(resources):
        [container] = pod["spec"]["containers"]
        assert {one["name"] for one in container["env"]} <= known[container["name"]]


def _given(command: click.Command, file: Path) -> dict[str, Any]:
    program = click.Context(click.Group("policyd"), info_name="policyd")
    return command.make_context("serve", ["--config", str(file)], parent=program).params


def test_pods_have_no_rights_to_spare(resources: list[Resource]) -> None:
    """Pods do not run as root, write only to their volumes, and do not use Kubernetes' API."""
    for _, pod in pods(resources):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec["automountServiceAccountToken"]
        [container] = spec["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]


def test_pods_have_time_to_end(resources: list[Resource]) -> None:
    """A pod is killed no sooner than drain, the longer grace and ten seconds after SIGTERM."""
    config = {
        one["metadata"]["name"]: yaml.safe_load(one["data"]["config.yaml"])
        for one in resources
        if one["kind"] == "ConfigMap"
    }
    for name, pod in pods(resources):
        given = config[name]
        grace = max(given["grace"], given.get("stream-grace", 0))
        assert pod["spec"]["terminationGracePeriodSeconds"] == given["drain"] + grace + 10


def test_probes_speak_as_the_server_does(resources: list[Resource]) -> None:
    """A probe speaks TLS where the server does; where the server wants certificates of its
    callers, policyd's own command asks."""
    config = {
        one["metadata"]["name"]: yaml.safe_load(one["data"]["config.yaml"])
        for one in resources
        if one["kind"] == "ConfigMap"
    }
    for name, pod in pods(resources):
        [container] = pod["spec"]["containers"]
        ports = {one["name"] for one in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asks = container[probe]
            if "tls-client-ca" in config[name]:
                assert asks["exec"]["command"][:2] == ["policyd", "health"]
                continue
            scheme = "HTTPS" if "tls-cert" in config[name] else "HTTP"
            assert asks["httpGet"]["scheme"] == scheme
            assert asks["httpGet"]["port"] in ports


def test_what_selects_pods_finds_them(resources: list[Resource]) -> None:
    """Services, budgets and network policies select pods of this chart, by ports that they have."""
    labels = [pod["metadata"]["labels"] for _, pod in pods(resources)]
    ports = {
        port["name"] for _, pod in pods(resources) for port in pod["spec"]["containers"][0]["ports"]
    }
    for one in resources:
        spec = one.get("spec", {})
        selectors = {
            "Service": lambda spec: spec["selector"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        }
        if one["kind"] not in selectors:
            continue
        wanted = selectors[one["kind"]](spec)
        assert any(wanted.items() <= label.items() for label in labels), one["metadata"]
        named = [port["targetPort"] for port in spec.get("ports", ())]
        named += [port["port"] for rule in spec.get("ingress", ()) for port in rule["ports"]]
        assert set(named) <= ports


def test_service_monitors_find_their_services(resources: list[Resource]) -> None:
    """Each ServiceMonitor selects one Service, by a port that it has."""
    services = [one for one in resources if one["kind"] == "Service"]
    for one in resources:
        if one["kind"] == "ServiceMonitor":
            wanted = one["spec"]["selector"]["matchLabels"].items()
            [found] = [s for s in services if wanted <= s["metadata"]["labels"].items()]
            [endpoint] = one["spec"]["endpoints"]
            assert endpoint["port"] in {port["name"] for port in found["spec"]["ports"]}


def test_the_manifests_of_envoy_find_it(resources: list[Resource]) -> None:
    """The Service is the one that the manifests for Istio and Envoy Gateway name."""
    folder = ROOT / "integrations/envoy"
    mesh = yaml.safe_load((folder / "istio/mesh-config.yaml").read_text())
    [provider] = mesh["spec"]["meshConfig"]["extensionProviders"]
    istio = provider["envoyExtAuthzGrpc"]
    security = yaml.safe_load((folder / "gateway/security-policy.yaml").read_text())
    [envoy] = security["spec"]["extAuth"]["grpc"]["backendRefs"]
    [service] = [
        one
        for one in resources
        if one["kind"] == "Service" and one["metadata"]["name"] == "policyd"
    ]
    ports = {one["name"]: one["port"] for one in service["spec"]["ports"]}
    assert istio["service"] == "policyd.policyd.svc.cluster.local"
    assert envoy["name"] == "policyd"
    assert istio["port"] == envoy["port"] == ports["grpc"]


MISTAKES = [
    (("insecure=false",), "policyd serves beyond its pod"),
    (("callerToken.existingSecret=", "insecure=false", "tls.existingSecret=t"), "authenticates"),
    (("tls.clientCa=true",), "tls.clientCa needs tls.existingSecret"),
    (("gateway.enabled=true",), "gateway.tls.existingSecret"),
    (("database.existingSecret=",), "PostgreSQL's URL"),
    (("adminToken.existingSecret=",), "the administration token"),
    (("image.repository=",), "image.repository"),
    (("policyd.replica=3",), "replica"),
    (("policyd.defaultMode=enforced",), "defaultMode"),
]


@pytest.mark.parametrize(("changes", "says"), MISTAKES, ids=[one[0][0] for one in MISTAKES])
def test_a_mistake_is_said(changes: tuple[str, ...], says: str) -> None:
    """Values that cannot work are refused before anything is installed, with the reason."""
    mesh = CHART / "ci/mesh-values.yaml"
    given = [word for change in changes for word in ("--set", change)]
    done = run(*_template("--values", str(mesh), *given))
    assert done.returncode != 0
    assert says in done.stderr
