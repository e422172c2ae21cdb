"""embedroute as a host has it: mounted in a Starlette application. `BENCH_CONFIG` names its TOML."""

import os

from starlette.applications import Starlette
from starlette.routing import Mount

from embedroute import Gateway, embeddings_app

app = Starlette(
    routes=[Mount("/ai", embeddings_app(Gateway.from_file(os.environ["BENCH_CONFIG"])))]
)
