"""Tests the requests of providers that are rows of data over the ``openai`` backend."""

import msgspec
import pytest

from embedroute import plugins
from embedroute.backend import Batch, Secret
from embedroute.backends.openai import OpenAI
from embedroute.config import catalogue, known_providers


@pytest.mark.parametrize(
    ("slug", "options", "batch", "url", "content"),
    [
        pytest.param(
            "fireworks",
            {},
            Batch(model="nomic-ai/nomic-embed-text-v1.5", texts=("a",), dimensions=64),
            "https://api.fireworks.ai/inference/v1/embeddings",
            b'{"normalize":true,"model":"nomic-ai/nomic-embed-text-v1.5","input":["a"],"dimensions":64}',
            id="fireworks",
        ),
        pytest.param(
            "databricks",
            {"base_url": "https://acme.cloud.databricks.com/serving-endpoints"},
            Batch(model="databricks-gte-large-en", texts=("a",)),
            "https://acme.cloud.databricks.com/serving-endpoints/embeddings",
            b'{"model":"databricks-gte-large-en","input":["a"]}',
            id="databricks",
        ),
        pytest.param(
            "zhipu",
            {},
            Batch(model="embedding-3", texts=("a",), dimensions=256),
            "https://open.bigmodel.cn/api/paas/v4/embeddings",
            b'{"model":"embedding-3","input":["a"],"dimensions":256}',
            id="zhipu",
        ),
        pytest.param(
            "volcengine",
            {},
            Batch(model="doubao-embedding", texts=("a",), user="u"),
            "https://ark.cn-beijing.volces.com/api/v3/embeddings",
            b'{"model":"doubao-embedding","input":["a"],"encoding_format":"base64","user":"u"}',
            id="volcengine",
        ),
        pytest.param(
            "dashscope-compatible",
            {},
            Batch(model="text-embedding-v4", texts=("a",), dimensions=64),
            "https://dashscope-intl.aliyuncs.com/compatible-mode/v1/embeddings",
            b'{"model":"text-embedding-v4","input":["a"],"encoding_format":"float","dimensions":64}',
            id="dashscope-compatible",
        ),
    ],
)
def test_builds_the_request(slug, options, batch, url, content):
    row = known_providers()[slug]
    backend = msgspec.convert({**row.options, **options}, OpenAI)

    request = msgspec.structs.replace(backend, api_key=Secret("k")).build(batch)

    assert url == request.url
    assert Secret("Bearer k") == request.headers["authorization"]
    assert content == request.content


WITHOUT_TYPES = {"multimodal-embedding-v1", "qwen2.5-vl-embedding", "qwen3-vl-embedding"} | {
    f"tongyi-embedding-vision-{size}" for size in ("flash", "plus")
}
"""Models whose API has no input type, although the answer may depend on the role of a text."""

ENDPOINTS = [
    pytest.param(model, endpoint, id=f"{name}@{endpoint.provider}")
    for name, model in catalogue().items()
    for endpoint in model.endpoints
    if endpoint.provider in plugins.BUILT_IN.keys() - {"openai", "hashed", "wordllama"}
    and name not in WITHOUT_TYPES
]


@pytest.mark.parametrize(("model", "endpoint"), ENDPOINTS)
def test_a_query_reaches_the_model_or_has_no_effect(model, endpoint):
    backend = plugins.load(known_providers()[endpoint.provider].backend)
    types = endpoint.accepts.get("input_types", backend.accepts.input_types)

    assert "query" in types or "query" in (model.prefixes or {}) or model.input_types == []
