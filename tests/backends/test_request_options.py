"""The options of requests as each API receives them: exact bytes.

The names and the values are those of the references that the docstrings of the backends name.
"""

import msgspec
import pytest

from embedroute.backend import Batch, Secret, list_fields
from embedroute.backends.bedrock import Bedrock
from embedroute.backends.cloudflare import Cloudflare
from embedroute.backends.cohere import Cohere
from embedroute.backends.dashscope import DashScope
from embedroute.backends.huggingface import HuggingFace
from embedroute.backends.jina import Jina
from embedroute.backends.nomic import Nomic
from embedroute.backends.nvidia import Nvidia
from embedroute.backends.ollama import Ollama
from embedroute.backends.openai import OpenAI
from embedroute.backends.openrouter import OpenRouter
from embedroute.backends.tei import TEI
from embedroute.backends.vertex import Vertex
from embedroute.backends.vllm import VLLM
from embedroute.backends.voyage import Voyage
from embedroute.backends.watsonx import WatsonX
from embedroute.errors import UpstreamRejectedInput
from embedroute.plugins import BUILT_IN, OPTIONS, Namespaces, load

KEY = Secret("k")
BACKENDS = {
    "bedrock": Bedrock(region="us-east-1", api_key=KEY),
    "cloudflare": Cloudflare(api_key=KEY, account_id="a", truncate_inputs=True),
    "cohere": Cohere(api_key=KEY, truncate="END"),
    "dashscope": DashScope(api_key=KEY, instruct="own"),
    "huggingface": HuggingFace(api_key=KEY, prompt_name="own"),
    "jina": Jina(api_key=KEY, truncate=True),
    "nomic": Nomic(api_key=KEY, long_text_mode="mean"),
    "nvidia": Nvidia(api_key=KEY),
    "ollama": Ollama(keep_alive="5m", model_options={"num_ctx": 512, "num_gpu": 1}),
    "openai": OpenAI(api_key=KEY, extra_body={"normalize": True}),
    "openrouter": OpenRouter(api_key=KEY, preferences={"sort": "price"}),
    "tei": TEI(prompt_name="own"),
    "vertex": Vertex(project="p", api_key=KEY),
    "vllm": VLLM(truncate_prompt_tokens=7),
    "voyage": Voyage(api_key=KEY, truncation=True),
    "watsonx": WatsonX(token=KEY, project_id="p", truncate_input_tokens=9),
}


@pytest.mark.parametrize(
    ("backend", "model", "fields", "content"),
    [
        ("bedrock", "cohere.embed-english-v3", {"truncate": "none"}, b'{"texts":["a"],"input_type":"search_document","truncate":"NONE"}'),
        ("bedrock", "cohere.embed-english-v3", {"truncate": "start"}, b'{"texts":["a"],"input_type":"search_document","truncate":"START"}'),
        ("bedrock", "cohere.embed-english-v3", {"truncate": "end"}, b'{"texts":["a"],"input_type":"search_document","truncate":"END"}'),
        ("bedrock", "amazon.nova-2-multimodal-embeddings-v1:0", {"truncate": "none"}, b'{"taskType":"SINGLE_EMBEDDING","singleEmbeddingParams":{"embeddingPurpose":"GENERIC_INDEX","text":{"truncationMode":"NONE","value":"a"}}}'),
        ("bedrock", "amazon.nova-2-multimodal-embeddings-v1:0", {"truncate": "start"}, b'{"taskType":"SINGLE_EMBEDDING","singleEmbeddingParams":{"embeddingPurpose":"GENERIC_INDEX","text":{"truncationMode":"START","value":"a"}}}'),
        ("bedrock", "amazon.nova-2-multimodal-embeddings-v1:0", {"truncate": "end"}, b'{"taskType":"SINGLE_EMBEDDING","singleEmbeddingParams":{"embeddingPurpose":"GENERIC_INDEX","text":{"truncationMode":"END","value":"a"}}}'),
        ("cloudflare", "@cf/baai/bge-m3", {"truncate": "none"}, b'{"text":["a"],"truncate_inputs":false}'),
        ("cloudflare", "@cf/baai/bge-m3", {"truncate": "end"}, b'{"text":["a"],"truncate_inputs":true}'),
        ("cohere", "embed-v4.0", {"truncate": "none"}, b'{"model":"embed-v4.0","input_type":"search_document","texts":["a"],"embedding_types":["float"],"truncate":"NONE"}'),
        ("cohere", "embed-v4.0", {"truncate": "start"}, b'{"model":"embed-v4.0","input_type":"search_document","texts":["a"],"embedding_types":["float"],"truncate":"START"}'),
        ("cohere", "embed-v4.0", {"truncate": "end"}, b'{"model":"embed-v4.0","input_type":"search_document","texts":["a"],"embedding_types":["float"],"truncate":"END"}'),
        ("huggingface", "BAAI/bge-m3", {"truncate": "none"}, b'{"inputs":["a"],"normalize":true,"truncate":false,"prompt_name":"own"}'),
        ("huggingface", "BAAI/bge-m3", {"truncate": "start"}, b'{"inputs":["a"],"normalize":true,"truncate":true,"truncation_direction":"left","prompt_name":"own"}'),
        ("huggingface", "BAAI/bge-m3", {"truncate": "end"}, b'{"inputs":["a"],"normalize":true,"truncate":true,"truncation_direction":"right","prompt_name":"own"}'),
        ("jina", "jina-embeddings-v3", {"truncate": "none"}, b'{"model":"jina-embeddings-v3","input":["a"],"embedding_type":"base64"}'),
        ("jina", "jina-embeddings-v3", {"truncate": "end"}, b'{"model":"jina-embeddings-v3","input":["a"],"embedding_type":"base64","truncate":true}'),
        ("nomic", "nomic-embed-text-v1.5", {"truncate": "end"}, b'{"texts":["a"],"model":"nomic-embed-text-v1.5","task_type":"search_document","long_text_mode":"truncate","max_tokens_per_text":8192}'),
        ("nvidia", "m", {"truncate": "none"}, b'{"model":"m","input":["a"],"input_type":"passage","encoding_format":"base64","truncate":"NONE"}'),
        ("nvidia", "m", {"truncate": "start"}, b'{"model":"m","input":["a"],"input_type":"passage","encoding_format":"base64","truncate":"START"}'),
        ("nvidia", "m", {"truncate": "end"}, b'{"model":"m","input":["a"],"input_type":"passage","encoding_format":"base64","truncate":"END"}'),
        ("ollama", "m", {"truncate": "none"}, b'{"model":"m","input":["a"],"truncate":false,"keep_alive":"5m","options":{"num_ctx":512,"num_gpu":1}}'),
        ("ollama", "m", {"truncate": "end"}, b'{"model":"m","input":["a"],"truncate":true,"keep_alive":"5m","options":{"num_ctx":512,"num_gpu":1}}'),
        ("tei", "m", {"truncate": "none"}, b'{"inputs":["a"],"normalize":true,"truncate":false,"prompt_name":"own"}'),
        ("tei", "m", {"truncate": "start"}, b'{"inputs":["a"],"normalize":true,"truncate":true,"truncation_direction":"Left","prompt_name":"own"}'),
        ("tei", "m", {"truncate": "end"}, b'{"inputs":["a"],"normalize":true,"truncate":true,"truncation_direction":"Right","prompt_name":"own"}'),
        ("vertex", "text-embedding-005", {"truncate": "none"}, b'{"instances":[{"content":"a"}],"parameters":{"autoTruncate":false}}'),
        ("vertex", "text-embedding-005", {"truncate": "end"}, b'{"instances":[{"content":"a"}],"parameters":{"autoTruncate":true}}'),
        ("vertex", "gemini-embedding-2", {"truncate": "none"}, b'{"content":{"parts":[{"text":"a"}]},"embedContentConfig":{"autoTruncate":false}}'),
        ("vertex", "gemini-embedding-2", {"truncate": "end"}, b'{"content":{"parts":[{"text":"a"}]},"embedContentConfig":{"autoTruncate":true}}'),
        ("vllm", "m", {"truncate": "none"}, b'{"model":"m","input":["a"],"encoding_format":"base64"}'),
        ("vllm", "m", {"truncate": "start"}, b'{"model":"m","input":["a"],"encoding_format":"base64","truncate_prompt_tokens":-1,"truncation_side":"left"}'),
        ("vllm", "m", {"truncate": "end"}, b'{"model":"m","input":["a"],"encoding_format":"base64","truncate_prompt_tokens":-1,"truncation_side":"right"}'),
        ("voyage", "voyage-4", {"truncate": "none"}, b'{"input":["a"],"truncation":false,"model":"voyage-4","encoding_format":"base64"}'),
        ("voyage", "voyage-4", {"truncate": "end"}, b'{"input":["a"],"truncation":true,"model":"voyage-4","encoding_format":"base64"}'),
        ("voyage", "voyage-context-3", {"truncate": "none"}, b'{"inputs":[["a"]],"model":"voyage-context-3","encoding_format":"base64"}'),
        ("watsonx", "m", {"truncate": "none"}, b'{"inputs":["a"],"model_id":"m","project_id":"p"}'),
        ("bedrock", "amazon.titan-embed-text-v2:0", {"options": {"normalize": False}}, b'{"inputText":"a","normalize":false}'),
        ("bedrock", "amazon.titan-embed-text-v2:0", {"truncate": "none"}, b'{"inputText":"a","normalize":true}'),
        ("bedrock", "cohere.embed-v4:0", {"options": {"max_tokens": 64}}, b'{"texts":["a"],"input_type":"search_document","embedding_types":["float"],"truncate":"NONE","max_tokens":64}'),
        ("cloudflare", "@cf/baai/bge-m3", {"options": {"pooling": "cls"}}, b'{"text":["a"],"pooling":"cls","truncate_inputs":true}'),
        ("cloudflare", "@cf/qwen/qwen3-embedding-0.6b", {"input_type": "query", "options": {"instruction": "find"}}, b'{"queries":["a"],"instruction":"find","truncate_inputs":true}'),
        ("cohere", "embed-v4.0", {"options": {"max_tokens": 64, "priority": 3}}, b'{"model":"embed-v4.0","input_type":"search_document","texts":["a"],"embedding_types":["float"],"truncate":"END","max_tokens":64,"priority":3}'),
        ("dashscope", "text-embedding-v4", {"input_type": "query", "options": {"instruct": "find"}}, b'{"model":"text-embedding-v4","input":{"texts":["a"]},"parameters":{"text_type":"query","instruct":"find"}}'),
        ("huggingface", "BAAI/bge-m3", {"truncate": "end", "options": {"normalize": False, "truncation_direction": "left", "prompt_name": "query"}}, b'{"inputs":["a"],"normalize":false,"truncate":true,"truncation_direction":"left","prompt_name":"query"}'),
        ("jina", "jina-embeddings-v4", {"options": {"task": "code.passage", "normalized": False}}, b'{"model":"jina-embeddings-v4","input":["a"],"task":"code.passage","embedding_type":"base64","normalized":false,"truncate":true}'),
        ("nomic", "nomic-embed-text-v1.5", {"options": {"long_text_mode": "mean", "max_tokens_per_text": 16}}, b'{"texts":["a"],"model":"nomic-embed-text-v1.5","task_type":"search_document","long_text_mode":"mean","max_tokens_per_text":16}'),
        ("ollama", "m", {"options": {"keep_alive": 0, "options": {"num_ctx": 64}}}, b'{"model":"m","input":["a"],"truncate":false,"keep_alive":0,"options":{"num_ctx":64,"num_gpu":1}}'),
        ("openai", "m", {"options": {"normalize": False, "prompt_template": "p", "model": "other"}}, b'{"normalize":false,"prompt_template":"p","model":"m","input":["a"],"encoding_format":"base64"}'),
        ("openrouter", "m", {"options": {"provider": {"order": ["a"]}}}, b'{"provider":{"order":["a"]},"model":"m","input":["a"],"encoding_format":"float"}'),
        ("tei", "m", {"truncate": "end", "options": {"normalize": False, "truncation_direction": "Left", "prompt_name": "query"}}, b'{"inputs":["a"],"normalize":false,"truncate":true,"truncation_direction":"Left","prompt_name":"query"}'),
        ("vllm", "m", {"options": {"truncate_prompt_tokens": 5, "truncation_side": "left", "add_special_tokens": False, "use_activation": False, "mm_processor_kwargs": {"a": 1}, "priority": 2}}, b'{"truncate_prompt_tokens":5,"truncation_side":"left","add_special_tokens":false,"use_activation":false,"mm_processor_kwargs":{"a":1},"priority":2,"model":"m","input":["a"],"encoding_format":"base64"}'),
        ("watsonx", "m", {"options": {"truncate_input_tokens": 5}}, b'{"inputs":["a"],"model_id":"m","project_id":"p","parameters":{"truncate_input_tokens":5}}'),
    ],
)  # fmt: skip
def test_sends_the_options_of_a_request(backend, model, fields, content):
    batch = Batch(model, texts=("a",), **fields)

    assert content == BACKENDS[backend].build(batch).content


@pytest.mark.parametrize(
    ("backend", "model", "fields", "param"),
    [
        (BACKENDS["voyage"], "voyage-context-3", {"truncate": "end"}, "truncate"),
        (BACKENDS["bedrock"], "amazon.titan-embed-text-v2:0", {"truncate": "end"}, "truncate"),
        (BACKENDS["bedrock"], "cohere.embed-english-v3", {"options": {"normalize": False}}, "normalize"),
        (BACKENDS["bedrock"], "amazon.titan-embed-text-v1", {"options": {"normalize": False}}, "normalize"),
        (BACKENDS["bedrock"], "amazon.titan-embed-text-v2:0", {"dtype": "binary"}, "output_dtype"),
        (TEI(base_url="http://tei.invalid/v1"), "m", {"truncate": "none"}, "truncate"),
        (Ollama(base_url="http://ollama.invalid/v1"), "m", {"options": {"keep_alive": 0}}, "keep_alive"),
        (Cloudflare(api_key=KEY, base_url="https://cf.invalid/v1"), "m", {"truncate": "end"}, "truncate"),
    ],
)  # fmt: skip
def test_refuses_an_option_that_the_model_or_the_api_does_not_have(backend, model, fields, param):
    with pytest.raises(UpstreamRejectedInput) as caught:
        backend.build(Batch(model, texts=("a",), **fields))

    assert param == caught.value.param


def test_each_backend_accepts_the_namespaces_of_its_structs():
    supported = {}
    for name in BUILT_IN:
        backend = load(name)
        supported |= {struct.namespace: struct for struct in backend.request_options}
        assert [struct.namespace for struct in backend.request_options] == [
            *backend.accepts.options
        ]

    assert dict(Namespaces()) == supported
    assert supported.keys() == OPTIONS.keys()


PARAMETERS = {
    "dimensions": "dimensions",
    "input_type": "input_types",
    "dtype": "dtypes",
    "truncate": "truncate",
}


@pytest.mark.parametrize("namespace", OPTIONS)
def test_each_neutral_option_is_one_that_the_backend_supports(namespace):
    backends = [load(name) for name in BUILT_IN]
    [*supporting] = [each for each in backends if namespace in each.accepts.options]

    for field in list_fields(Namespaces()[namespace]):
        if field.parameter in PARAMETERS:
            assert all(getattr(each.accepts, PARAMETERS[field.parameter]) for each in supporting)


@pytest.mark.parametrize("namespace", OPTIONS)
def test_every_text_of_an_option_has_a_maximum_length(namespace):
    """Long strings of a large body are replaced by placeholders, which must not get through."""
    struct = Namespaces()[namespace]
    schema = msgspec.json.schema(struct)
    [*texts] = [
        node for node in walk(schema["$defs"][struct.__name__]) if node.get("type") == "string"
    ]

    assert all("maxLength" in text or "enum" in text for text in texts)


def walk(node):
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from walk(inner)
