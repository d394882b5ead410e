"""A real Envoy with the shipped bootstrap, in which only the addresses are changed."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.support.processes import Program

SHIPPED = Path(__file__).parents[3] / "integrations/envoy/envoy.yaml"
Change = Callable[[dict[str, Any]], None]


def bootstrap(policyd: str, upstream: str, authority: Path) -> dict[str, Any]:
    """The shipped bootstrap with free ports to listen on, this policyd and this upstream.

    The upstream must be api.openai.com by a certificate of `authority`.
    """
    shipped: dict[str, Any] = yaml.safe_load(SHIPPED.read_text())
    shipped["admin"] = {"address": _address("127.0.0.1:0")}
    resources = shipped["static_resources"]
    listener(shipped)["address"] = _address("127.0.0.1:0")
    policy, openai = resources["clusters"]
    _endpoint(policy)["address"] = _address(policyd)
    _endpoint(openai)["address"] = _address(urlsplit(upstream).netloc)
    tls = openai["transport_socket"]["typed_config"]["common_tls_context"]
    tls["validation_context"]["trusted_ca"]["filename"] = str(authority)
    return shipped


def check_over_http(config: dict[str, Any], policyd: str) -> None:
    """Replace the filter by those of http-check.yaml, which ask policyd at this HTTP address."""
    shipped = manifest("http-check.yaml")
    manager(config)["http_filters"][:1] = shipped["http_filters"]
    (cluster,) = shipped["clusters"]
    _endpoint(cluster)["address"] = _address(policyd)
    config["static_resources"]["clusters"].append(cluster)


def manifest(path: str) -> dict[str, Any]:
    """Another of the files that are shipped beside it."""
    made: dict[str, Any] = yaml.safe_load((SHIPPED.parent / path).read_text())
    return made


def listener(config: dict[str, Any]) -> dict[str, Any]:
    """Its listener."""
    found: dict[str, Any]
    (found,) = config["static_resources"]["listeners"]
    return found


def ext_authz(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of its filter ext_authz."""
    found: dict[str, Any] = manager(config)["http_filters"][0]["typed_config"]
    return found


def access_log(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the access log that policyd gets."""
    found: dict[str, Any] = manager(config)["access_log"][1]["typed_config"]["common_config"]
    return found


def routes(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Its routes."""
    found: list[dict[str, Any]] = manager(config)["route_config"]["virtual_hosts"][0]["routes"]
    return found


def manager(config: dict[str, Any]) -> dict[str, Any]:
    """Its HTTP connection manager."""
    (chain,) = listener(config)["filter_chains"]
    found: dict[str, Any] = chain["filters"][0]["typed_config"]
    return found


def _endpoint(cluster: dict[str, Any]) -> dict[str, Any]:
    (places,) = cluster["load_assignment"]["endpoints"]
    found: dict[str, Any] = places["lb_endpoints"][0]["endpoint"]
    return found


def _address(place: str) -> dict[str, Any]:
    host, _, port = place.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


class Envoy(Program):
    """A running Envoy. `log` holds the lines of its access log so far."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        file, admin = folder / "envoy.json", folder / "admin-address"
        file.write_text(json.dumps(config))
        super().__init__(
            *("envoy", "--config-path", str(file), "--admin-address-path", str(admin)),
            *("--disable-hot-restart", "--concurrency", "1", "--log-path", "/dev/stdout"),
            *("--file-flush-interval-msec", "50"),
            ready="starting main dispatch loop",
        )
        with urllib.request.urlopen(f"http://{admin.read_text()}/listeners?format=json") as found:
            (status,) = json.load(found)["listener_statuses"]
        place = status["local_address"]["socket_address"]
        self.url = f"http://{place['address']}:{place['port_value']}"

    @property
    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self.output) if line.startswith("{")]
