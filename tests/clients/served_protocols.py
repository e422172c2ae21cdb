"""Serves the APIs of all other protocols, for their official clients."""

import logging

from embedroute import Config, Gateway, embeddings_app
from embedroute.backend import Accepts, Vectors
from embedroute.testing import ScriptedBackend
from embedroute.vectors import from_lists

KEY = "sk-other-protocols"
MODEL = "org/words"
WIDTH = 8


class Words(ScriptedBackend, frozen=True, kw_only=True):
    """A model with quantised vectors and images, whose input types change its vectors."""

    accepts = Accepts(
        modalities=("text", "image"),
        input_types=("query", "document"),
        dtypes=("float", "int8"),
        truncate=("none", "start", "end"),
    )

    async def embed(self, batch):
        """Return the length of the input type as numbers of int8, if they are requested."""
        if batch.dtype == "int8":
            rows = [[len(batch.input_type or ""), -1] * (WIDTH // 2) for _ in batch.inputs]
            return Vectors(from_lists(rows, "int8"), 1)
        return await super().embed(batch)


gateway = Gateway(
    Config(
        gateway={
            "auth": "keys",
            "protocols": [
                "openai",
                "azure",
                "cohere",
                "engines",
                "jina",
                "ollama",
                "tei",
                "voyage",
            ],
        },
        keys={"one": {"key": KEY, "models": [MODEL]}},
        providers={"words": {"backend": Words(width=WIDTH)}},
        models={
            MODEL: {
                "dimensions": WIDTH,
                "matryoshka": True,
                "modalities": ["text", "image"],
                "max_input_tokens": 512,
                "endpoints": [{"provider": "words"}],
            }
        },
    )
)
# The host configures no logging. Without this, Python would print warnings to stderr.
logging.getLogger("embedroute").addHandler(logging.NullHandler())
app = embeddings_app(gateway)
