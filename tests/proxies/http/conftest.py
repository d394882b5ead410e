"""Proxies of other makers before a demo upstream, asking a real policyd over HTTP."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.proxies.http.proxies import Proxy, address, configured
from tests.support import requirements
from tests.support.ports import unused_port
from tests.support.processes import Policyd
from tests.support.stack import Background, Gateway, Upstream

LARGEST = 2**20
"""Bytes of a body that the proxies are set to let policyd read."""


@dataclass
class Stack:
    """A proxy with the servers behind it, and API keys."""

    name: str
    url: str
    upstream: Upstream
    proxy: Proxy
    policyd: Policyd
    enforced: str
    off: str


@pytest.fixture(scope="session")
def background() -> Iterator[Background]:
    with Background() as loop:
        yield loop


@contextmanager
def nginx(folder: Path, port: int, policyd: Policyd, upstream: Upstream) -> Iterator[Proxy]:
    """nginx with njs."""
    program = requirements.program("nginx", "libnginx-mod-http-js")
    module = Path("/usr/lib/nginx/modules/ngx_http_js_module.so")
    requirements.file(module, "apt-get install libnginx-mod-http-js")
    h2 = unused_port()
    changes = {
        "127.0.0.1:50053": policyd.http,
        "listen 127.0.0.1:8000;": f"listen 127.0.0.1:{port}; listen 127.0.0.1:{h2} http2;",
        "api.openai.com:443": address(upstream.url),
        "https://openai": "http://openai",
        "client_max_body_size 64m;": f"client_max_body_size {2 * LARGEST};",
        # In the folder of the user who runs the test.
        "access_log off;": "access_log off; client_body_temp_path body; proxy_temp_path proxy; "
        "fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;",
    }
    copy = configured(folder, "nginx", changes)
    command = (program, "-p", str(copy), "-c", "nginx.conf", "-g", "daemon off; user root;")
    with Proxy(port, *command, folder=copy) as proxy:
        proxy.h2_url = f"http://127.0.0.1:{h2}"
        yield proxy


@contextmanager
def haproxy(folder: Path, port: int, policyd: Policyd, upstream: Upstream) -> Iterator[Proxy]:
    """HAProxy with Lua."""
    program = requirements.program("haproxy", "haproxy")
    tls = "ssl verify required ca-file /etc/ssl/certs/ca-certificates.crt sni str(api.openai.com)"
    changes = {
        "127.0.0.1:50053": policyd.http,
        "127.0.0.1:8000": f"127.0.0.1:{port}",
        f"api.openai.com:443 {tls}": address(upstream.url),
    }
    copy = configured(folder, "haproxy", changes)
    with Proxy(port, program, "-db", "-f", "haproxy.cfg", folder=copy) as proxy:
        yield proxy


@contextmanager
def caddy(folder: Path, port: int, policyd: Policyd, upstream: Upstream) -> Iterator[Proxy]:
    """Caddy before policyd's gateway."""
    program = requirements.program("caddy", "caddy")
    gateway = Gateway(
        policyd.grpc, upstream.url, "--max-body", str(LARGEST), "--policy-timeout", "30"
    )
    try:
        changes = {
            "127.0.0.1:8080": address(gateway.url),
            ":8000 {": f":{port} {{",
            "admin off": "admin off\n\tservers {\n\t\tprotocols h1 h2c\n\t}",
        }
        with _caddy(folder, port, program, "Caddyfile", changes) as proxy:
            yield proxy
    finally:
        gateway.stop()


@contextmanager
def forward_auth(folder: Path, port: int, policyd: Policyd, upstream: Upstream) -> Iterator[Proxy]:
    """Caddy with forward_auth."""
    program = requirements.program("caddy", "caddy")
    changes = {
        "127.0.0.1:50053": policyd.http,
        ":8000 {": f":{port} {{",
        "https://api.openai.com": upstream.url,
    }
    with _caddy(folder, port, program, "forward_auth.Caddyfile", changes) as proxy:
        yield proxy


@contextmanager
def _caddy(
    folder: Path, port: int, program: str, file: str, changes: dict[str, str]
) -> Iterator[Proxy]:
    copy = configured(folder, "caddy", changes)
    # Caddy keeps certificates and its last configuration in the home folder.
    home = (f"HOME={copy}", f"XDG_DATA_HOME={copy}/data", f"XDG_CONFIG_HOME={copy}/config")
    command = ("/usr/bin/env", *home, program, "run", "--config", file, "--adapter", "caddyfile")
    with Proxy(port, *command, folder=copy) as proxy:
        yield proxy


STARTERS = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy, "forward_auth": forward_auth}


@contextmanager
def stack(name: str, folder: Path, background: Background) -> Iterator[Stack]:
    """Start the proxy `name` and the servers that it needs."""
    with ExitStack() as running:
        flags = ("--http", "127.0.0.1:0", "--max-body", str(LARGEST))
        policyd = Policyd(folder, *flags)
        running.callback(policyd.stop)
        keys = policyd.create_key("enforce"), policyd.create_key("off")
        upstream = running.enter_context(Upstream(background))
        proxy = running.enter_context(STARTERS[name](folder, unused_port(), policyd, upstream))
        yield Stack(name, proxy.url, upstream, proxy, policyd, *keys)
