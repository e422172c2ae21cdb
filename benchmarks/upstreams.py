"""The upstreams: nginx with fixed answers, and the one that answers per input; which model is found where."""

import msgspec

from benchmarks import bodies, places
from benchmarks.servers import Server

FIXED = {
    "n1-base64": (1, "base64"),
    "n1-float": (1, "float"),
    "n128-base64": (128, "base64"),
    "n2048-base64": (2048, "base64"),
    "n2048-float": (2048, "float"),
}
PER_INPUT = {"instant": "instant", "gpu-alone": "gpu", "gpu-merged": "gpu"}
MODELS = (*FIXED, *PER_INPUT)

NGINX = """\
daemon off; master_process off; worker_processes 1; pid {run}/nginx.pid; error_log {logs}/nginx.error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; default_type application/json; server_tokens off;
  keepalive_requests 1000000000; keepalive_timeout 600s; client_max_body_size 64m; client_body_buffer_size 1m;
  open_file_cache max=16 inactive=600s; open_file_cache_valid 600s;
  client_body_temp_path {run}/body; proxy_temp_path {run}/proxy; fastcgi_temp_path {run}/fastcgi;
  uwsgi_temp_path {run}/uwsgi; scgi_temp_path {run}/scgi;
  server {{ listen 127.0.0.1:{port} backlog=1024; root {answers}; error_page 405 =200 $uri; }}
}}
"""


class Ports(msgspec.Struct, frozen=True):
    nginx: int
    gpu: int


def url(ports: Ports, model: str) -> str:
    """The base URL that answers a model, up to and with `/v1`."""
    if model in PER_INPUT:
        return f"http://127.0.0.1:{ports.gpu}/{PER_INPUT[model]}/v1"
    return f"http://127.0.0.1:{ports.nginx}/{model}/v1"


def asked_in_base64(model: str) -> str:
    """The model whose answer holds the same vectors in base64: what a gateway that asks for base64 gets."""
    return model.replace("-float", "-base64")


def start_nginx(port: int) -> Server:
    _write_answers()
    config = places.RUN / "nginx.conf"
    config.write_text(
        NGINX.format(run=places.RUN, logs=places.LOGS, answers=places.ANSWERS, port=port)
    )
    return Server(
        "nginx", ["nginx", "-p", str(places.RUN), "-c", str(config)], port, places.LOAD_CORE
    )


def start_gpu(port: int) -> Server:
    return Server(
        "gpu", [places.python("venv"), "-m", "benchmarks.gpu", str(port)], port, places.LOAD_CORE
    )


def _write_answers() -> None:
    for name, (count, encoding) in FIXED.items():
        file = places.ANSWERS / name / "v1" / "embeddings"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bodies.answer(count, encoding))
