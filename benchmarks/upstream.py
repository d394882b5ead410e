"""The upstream of the benchmarks: nginx, which gives one fixed completion at almost no CPU.

Without nginx it is the demo upstream, in Python, whose CPU then weighs on every rate.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import Program, started
from tests.support.ports import unused_port

_NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/bin")
STUB = "nginx" if _NGINX else "the demo upstream in Python, as nginx is absent"
_COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1767225600,
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "The water lags behind the moon."},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 40, "completion_tokens": 8, "total_tokens": 48},
}
_CONFIGURATION = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr notice;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  client_max_body_size 64m; keepalive_requests 1000000000; keepalive_timeout 600;
  server {{
    listen 127.0.0.1:{port}; default_type application/json; add_header x-request-id req_1;
    location / {{ return 200 '{completion}'; }}
  }}
}}
"""


@contextmanager
def upstream(folder: Path) -> Iterator[Program]:
    """Run it until the end of the block; its one place is its URL."""
    if _NGINX is None:
        with _demo() as program:
            yield program
        return
    place = folder / "upstream"
    place.mkdir()
    port, file = unused_port(), place / "nginx.conf"
    completion = json.dumps(_COMPLETION)
    file.write_text(_CONFIGURATION.format(folder=place, port=port, completion=completion))
    with started(_NGINX, "-e", "stderr", "-c", str(file), ready="start worker process") as program:
        yield Program(program.pid, (f"http://127.0.0.1:{port}",))


@contextmanager
def _demo() -> Iterator[Program]:
    with started(
        *("uvicorn", "--factory", "policyd.demo.upstream:DemoUpstream"),
        *("--port", "0", "--no-access-log", "--no-use-colors"),
        ready=r"running on (http://\S+)",
    ) as program:
        yield program
