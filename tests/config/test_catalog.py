"""Tests the two shipped data files row by row."""

import json
import re
from collections import Counter
from decimal import Decimal
from importlib.resources import files

import msgspec
import pytest

from embedroute import plugins
from embedroute.backend import Accepts
from embedroute.backends.openai import OpenAI

CATALOGUE = json.loads(files("embedroute").joinpath("config/data/models.json").read_bytes())
PROVIDERS = json.loads(files("embedroute").joinpath("config/data/providers.json").read_bytes())
MODELS = [pytest.param(row, id=row["model"]) for row in CATALOGUE]
ENDPOINTS = [
    pytest.param(row, endpoint, id=f"{row['model']}@{endpoint['provider']}")
    for row in CATALOGUE
    for endpoint in row["endpoints"]
]
ROWS = [pytest.param(slug, row, id=slug) for slug, row in PROVIDERS.items()]
BUILT_IN = {"hashed", "wordllama"}
# Schema `ProviderName` of OpenRouter's document.
OPENROUTER_NAMES = [
    "AkashML", "AI21", "AionLabs", "Alibaba", "Ambient", "Baidu", "Amazon Bedrock", "Amazon Nova", "Anthropic",
    "Arcee AI", "AtlasCloud", "Avian", "Azure", "BaseTen", "BytePlus", "Black Forest Labs", "Cerebras", "Chutes",
    "Cirrascale", "Clarifai", "Cloudflare", "Cohere", "Crusoe", "DeepInfra", "DeepSeek", "DekaLLM", "Featherless",
    "Fireworks", "Friendli", "GMICloud", "Google", "Google AI Studio", "Groq", "Hyperbolic", "Inception", "Inceptron",
    "InferenceNet", "Ionstream", "Infermatic", "Io Net", "Inflection", "Liquid", "Mara", "Mancer 2", "Minimax",
    "ModelRun", "Mistral", "Modular", "Moonshot AI", "Morph", "NCompass", "Nebius", "NextBit", "Novita", "Nvidia",
    "OpenAI", "OpenInference", "Parasail", "Perplexity", "Phala", "Recraft", "Reka", "Relace", "SambaNova", "Seed",
    "SiliconFlow", "Sourceful", "StepFun", "Stealth", "StreamLake", "Switchpoint", "Together", "Upstage", "Venice",
    "WandB", "Xiaomi", "xAI", "Z.AI", "FakeProvider",
]  # fmt: skip
WORDS = {
    "query",
    "document",
    "classification",
    "clustering",
    "similarity",
    "qa",
    "fact_check",
    "code_query",
}


def normal(name):
    return re.sub(r"[\s._]+", "-", name.strip().lower())


KNOWN = {normal(name) for slug, row in PROVIDERS.items() for name in (slug, row["vendor"])}


def accepts(over):
    return msgspec.convert(over, Accepts)


def repeated(names):
    return [name for name, times in Counter(names).items() if times > 1]


def test_model_names_are_unique_and_sorted():
    names = [row["model"] for row in CATALOGUE]

    assert repeated(names) == []
    assert names == sorted(names, key=str.lower)


def test_provider_slugs_are_unique_and_sorted():
    """A JSON object decoded to a dict hides a duplicate slug."""
    pairs = json.loads(
        files("embedroute").joinpath("config/data/providers.json").read_bytes(),
        object_pairs_hook=list,
    )
    slugs = [slug for slug, _ in pairs]

    assert repeated(slugs) == []
    assert slugs == sorted(slugs)


@pytest.mark.parametrize("file", ["models.json", "providers.json"])
def test_a_data_file_has_one_row_per_line(file):
    first, *rows, last = (
        files("embedroute").joinpath("config/data", file).read_text(encoding="utf-8").splitlines()
    )

    assert first + last in ("[]", "{}")
    assert len(rows) == len(CATALOGUE if file == "models.json" else PROVIDERS)


@pytest.mark.parametrize(("slug", "row"), ROWS)
def test_a_slug_is_valid_and_normalized(slug, row):
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9._-]+)?", slug)
    assert slug == normal(slug)
    assert row["vendor"]


@pytest.mark.parametrize(("slug", "row"), ROWS)
def test_a_provider_row_has_only_known_keys(slug, row):
    assert set(row) <= {"backend", "vendor", "options", "env", "required", "accepts"}, slug


@pytest.mark.parametrize(("slug", "row"), [row for row in ROWS if "env" in row.values[1]])
def test_the_environment_sets_options_of_the_backend(slug, row):
    """A key alone must not enable a provider whose address is not known."""
    fields = {field.name: field for field in msgspec.structs.fields(plugins.load(row["backend"]))}
    required = {name for name, field in fields.items() if field.required}

    assert set(row["env"]) <= set(fields), slug
    assert required | {"api_key"} <= set(row.get("required", ["api_key"])) <= set(row["env"]), slug


@pytest.mark.parametrize(("slug", "row"), ROWS)
def test_a_provider_uses_a_built_in_backend_or_none(slug, row):
    """A key variable must not enable a provider that has no backend."""
    if row["backend"] is None:
        assert set(row) == {"backend", "vendor"}
    else:
        assert row["backend"] in plugins.BUILT_IN, slug


@pytest.mark.parametrize(("slug", "row"), ROWS)
def test_an_openai_compatible_provider_has_its_own_base_url(slug, row):
    """Without its own base_url, its key and its texts would be sent to OpenAI."""
    options = row.get("options", {})
    msgspec.convert(options, OpenAI)
    address = options.get("base_url", "")

    assert (row["backend"] == "openai") == bool(address)
    assert (
        address.startswith("https://")
        or not address
        or (address.startswith("http://localhost:") and "env" not in row)
    )
    assert not address.endswith("/")
    assert ("api.openai.com" in address) == (slug == "openai")


@pytest.mark.parametrize(("slug", "row"), ROWS)
def test_a_provider_row_overrides_only_fields_of_accepts(slug, row):
    """If base64 is not supported, floats are requested.

    Token ids are OpenAI's, so only OpenAI accepts them.
    """
    over = row.get("accepts", {})
    accepts(over)
    encoding = row.get("options", {}).get("encoding_format")

    assert (encoding in {"float", "omit"}) == (over.get("base64") is False)
    assert over.get("tokens") is False or slug == "openai" or row["backend"] != "openai"


def test_a_key_variable_belongs_to_one_provider():
    names = [name for row in PROVIDERS.values() for name in row.get("env", {}).get("api_key", [])]

    assert repeated(names) == []
    assert [name for name in names if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name)] == []


@pytest.mark.parametrize("name", OPENROUTER_NAMES)
def test_every_provider_of_the_openrouter_document_is_known(name):
    """Requests written for OpenRouter may contain any of its names in ``ignore``."""
    assert normal(name) in KNOWN


def test_the_list_of_openrouter_providers_is_complete():
    assert len(set(OPENROUTER_NAMES)) == 79


@pytest.mark.parametrize("row", MODELS)
def test_a_model_row_has_only_known_keys(row):
    always = {
        "model", "dimensions", "matryoshka", "dimensions_allowed", "max_input_tokens", "modalities", "normalized", "endpoints",
    }  # fmt: skip

    assert always <= set(row) <= always | {"dimensions_min", "symmetric", "prefixes", "unverified"}


@pytest.mark.parametrize("row", MODELS)
def test_allowed_dimensions_do_not_exceed_the_dimensions_of_the_model(row):
    width, allowed, least = row["dimensions"], row["dimensions_allowed"], row.get("dimensions_min")

    assert type(width) is int
    assert width > 0
    assert allowed is None or (
        allowed == sorted(set(allowed)) and allowed[0] > 0 and allowed[-1] == width
    )
    assert least is None or 1 < least < width
    assert row["matryoshka"] or (allowed, least) == (None, None)
    assert allowed is None or least is None


@pytest.mark.parametrize("row", MODELS)
def test_the_other_fields_of_a_model_are_well_formed(row):
    assert row["normalized"] in (True, False, None)
    assert row["max_input_tokens"] is None or row["max_input_tokens"] > 0
    assert row["modalities"][0] == "text"
    assert set(row["modalities"]) <= {"text", "image", "audio", "video", "document"}
    assert row.get("symmetric") in (True, None)
    assert row.get("unverified") != []


@pytest.mark.parametrize("row", [row for row in MODELS if "prefixes" in row.values[0]])
def test_prefixes_are_keyed_by_input_type(row):
    """A model with prefixes distinguishes input types, so it cannot be symmetric."""
    assert {"query", "document"} <= set(row["prefixes"]) <= WORDS
    assert "symmetric" not in row
    assert any(row["prefixes"].values())
    assert not any(endpoint.get("accepts", {}).get("input_types") for endpoint in row["endpoints"])


@pytest.mark.parametrize("row", MODELS)
def test_a_model_has_one_endpoint_per_provider_in_order(row):
    providers = [endpoint["provider"] for endpoint in row["endpoints"]]

    assert providers
    assert providers == sorted(set(providers))


@pytest.mark.parametrize(("row", "endpoint"), ENDPOINTS)
def test_an_endpoint_belongs_to_a_known_provider_and_names_its_source(row, endpoint):
    assert set(endpoint) <= {"provider", "model", "price", "accepts", "deprecated", "source"}
    assert endpoint["provider"] in PROVIDERS
    assert endpoint.get("model") != row["model"]
    assert endpoint.get("source") or endpoint["provider"] in BUILT_IN


@pytest.mark.parametrize(("row", "endpoint"), ENDPOINTS)
def test_an_endpoint_has_a_provider_with_a_built_in_backend(row, endpoint):
    assert PROVIDERS[endpoint["provider"]]["backend"], row["model"]


@pytest.mark.parametrize(("row", "endpoint"), ENDPOINTS)
def test_a_price_is_a_plain_decimal(row, endpoint):
    """Decimal also accepts NaN, 1_000 and full-width digits."""
    for kind, price in endpoint.get("price", {"prompt": "0"}).items():
        assert kind == "prompt", row["model"]
        assert re.fullmatch(r"(0|[1-9][0-9]*)(\.[0-9]*[1-9])?", price, re.ASCII)
        assert 0 <= Decimal(price) < 10


@pytest.mark.parametrize(("row", "endpoint"), ENDPOINTS)
def test_an_endpoint_overrides_only_fields_of_accepts(row, endpoint):
    """Many APIs return 400 if ``dimensions`` is sent for a model with only one size."""
    over = endpoint.get("accepts", {})
    merged = accepts(
        {"dimensions": True, **PROVIDERS[endpoint["provider"]].get("accepts", {}), **over}
    )

    assert over != {} or "accepts" not in endpoint
    assert row["matryoshka"] or not merged.dimensions


@pytest.mark.parametrize(
    ("model", "other"),
    [
        ("BAAI/bge-m3", "fireworks"),
        ("BAAI/bge-m3", "cloudflare"),
        ("BAAI/bge-m3", "ollama"),
        ("Qwen/Qwen3-Embedding-8B", "fireworks"),
        ("Qwen/Qwen3-Embedding-8B", "ollama"),
        ("gemini-embedding-001", "openrouter"),
    ],
)
def test_models_with_different_vector_spaces_have_different_names(model, other):
    """Other pooling, no normalization, 4-bit weights or another default task change the vectors."""
    (row,) = [row for row in CATALOGUE if row["model"] == model]

    assert other not in [endpoint["provider"] for endpoint in row["endpoints"]]


def test_text_embedding_3_small_has_the_documented_facts():
    (row,) = [row for row in CATALOGUE if row["model"] == "text-embedding-3-small"]
    openai = next(endpoint for endpoint in row["endpoints"] if endpoint["provider"] == "openai")

    assert {
        name: fact for name, fact in row.items() if name not in ("endpoints", "unverified")
    } == {
        "model": "text-embedding-3-small",
        "dimensions": 1536,
        "matryoshka": True,
        "dimensions_allowed": None,
        "max_input_tokens": 8192,
        "modalities": ["text"],
        "normalized": True,
        "symmetric": True,
    }
    assert {name: fact for name, fact in openai.items() if name != "source"} == {
        "provider": "openai",
        "price": {"prompt": "0.02"},
        "accepts": {"truncate": ["none"]},
    }
    assert [(endpoint["provider"], endpoint.get("model")) for endpoint in row["endpoints"]] == [
        ("azure", None),
        ("openai", None),
        ("openrouter", "openai/text-embedding-3-small"),
        ("vercel-ai-gateway", "openai/text-embedding-3-small"),
    ]


@pytest.mark.parametrize(("model", "allowed"), [("wordllama", [64, 128, 256]), ("hashed", None)])
def test_models_of_built_in_backends_are_listed(model, allowed):
    (row,) = [row for row in CATALOGUE if row["model"] == model]

    assert (row["dimensions"], row["matryoshka"], row["dimensions_allowed"]) == (256, True, allowed)
    assert row["endpoints"] == [{"provider": model, "price": {"prompt": "0"}}]
