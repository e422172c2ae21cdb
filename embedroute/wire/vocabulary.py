"""The words for what an input is for: one neutral vocabulary, and how each vendor spells it.

Sources: the API references of Cohere, Voyage, Gemini, Jina, NVIDIA, DashScope, Nomic, Amazon Nova and Azure.
"""

from collections.abc import Mapping
from typing import Final

SPELLINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "query": ("query", "search_query", "retrieval_query", "retrieval.query", "generic_retrieval", "text_retrieval"),
    "document": ("document", "search_document", "retrieval_document", "retrieval.passage", "passage", "generic_index"),
    "classification": ("classification",),
    "clustering": ("clustering", "separation"),
    "similarity": ("similarity", "semantic_similarity", "text-matching", "text"),
    "qa": ("qa", "question_answering"),
    "fact_check": ("fact_check", "fact_verification"),
    "code_query": ("code_query", "code_retrieval_query", "code.query", "nl2code.query"),
    "image": ("image", "image_retrieval"),
}
"""Neutral word → every spelling of it, in lower case. Azure's ``text``, which is for whatever is neither query nor
document, is read as the least special of its meanings.
"""

NEUTRAL: Final[Mapping[str, str]] = {spelling: word for word, spellings in SPELLINGS.items() for spelling in spellings}
"""Spelling in lower case → neutral word."""

GOOGLE_TASKS: Final[Mapping[str, str | None]] = {
    "TASK_TYPE_UNSPECIFIED": None,
    "RETRIEVAL_QUERY": "query",
    "RETRIEVAL_DOCUMENT": "document",
    "SEMANTIC_SIMILARITY": "similarity",
    "CLASSIFICATION": "classification",
    "CLUSTERING": "clustering",
    "QUESTION_ANSWERING": "qa",
    "FACT_VERIFICATION": "fact_check",
    "CODE_RETRIEVAL_QUERY": "code_query",
}
"""Gemini's ``taskType`` → neutral word."""
