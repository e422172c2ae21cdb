"""The application that uvicorn serves. `STRESS_CONFIG` names its TOML."""

import os

from embedroute import Gateway, embeddings_app

app = embeddings_app(Gateway.from_file(os.environ["STRESS_CONFIG"]))
