"""Writes the configuration of each system: TOML of embedroute, LiteLLM, routes of the bare proxies."""

import json
from pathlib import Path

from benchmarks import places, upstreams
from benchmarks.bodies import WIDTH
from benchmarks.upstreams import Ports

KEY = "sk-bench-0123456789abcdef"

GATEWAY = f"""\
[gateway]
auth = "keys"
transport = "%s"

[keys.bench]
key = "{KEY}"

[cache]
bytes = %d
"""
MODEL = f"""
[providers.{{model}}]
backend = "openai"
api_key = "upstream"
base_url = "{{url}}"

[models.{{model}}]
dimensions = {WIDTH}
endpoints = [{{{{ provider = "{{model}}", model = "upstream-model", price = 0.02{{more}} }}}}]
"""


def write(ports: Ports) -> dict[str, str]:
    """Every file and text that `systems` fills into commands and variables."""
    return {
        "off": _put("embedroute-off.toml", _embedroute(ports, "auto", 0)),
        "httpx2": _put("embedroute-httpx2.toml", _embedroute(ports, "httpx2", 0)),
        "on": _put("embedroute-on.toml", _embedroute(ports, "auto", 256 * 2**20)),
        "litellm": _put("litellm.yaml", _litellm(ports)),
        "routes": json.dumps(
            {f"/{model}": f"{upstreams.url(ports, model)}/embeddings" for model in upstreams.MODELS}
        ),
    }


def _put(name: str, text: str) -> str:
    file: Path = places.RUN / name
    file.write_text(text)
    return str(file)


def _embedroute(ports: Ports, transport: str, cache: int) -> str:
    return GATEWAY % (transport, cache) + "".join(
        MODEL.format(
            model=model,
            url=upstreams.url(ports, upstreams.asked_in_base64(model)),
            more=", micro_batch_ms = 2.0" if model == "gpu-merged" else "",
        )
        for model in upstreams.MODELS
    )


def _litellm(ports: Ports) -> str:
    """JSON, which is YAML too."""
    models = [
        {
            "model_name": model,
            "litellm_params": {
                "model": "openai/upstream-model",
                "api_base": upstreams.url(ports, model),
                "api_key": "upstream",
            },
        }
        for model in upstreams.MODELS
    ]
    return json.dumps({"model_list": models, "general_settings": {"master_key": KEY}})
