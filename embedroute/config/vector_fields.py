"""Names the request fields that change vectors at known embeddings APIs.

Sources: the API references of OpenAI, Cohere, Voyage, Jina, Gemini, Vertex, Mistral, NVIDIA,
DashScope, Bedrock, watsonx, Together, Fireworks, Nomic, Ollama, vLLM, TEI, Infinity and llama.cpp.
"""

from typing import Final

_FIELDS: Final = """
dim dims dimension dimensions output_dim output_dims output_dimension output_dimensions
output_dimensionality output_embedding_length embedding_dimension embedding_size size width
matryoshka_dim matryoshka_dimension matryoshka_dimensions truncate_dim
dtype embed_dtype embedding_dtype output_dtype output_type embedding_type embedding_types
encoding_type encoding_format precision quantization
task task_type text_type input_type type modality embedding_purpose
title prompt prompt_name prompt_template instruct instruction instructions query_instruction
system_prompt prefix query_prefix embedding_config embedding_options
truncate truncate_inputs truncate_prompt_tokens truncate_input_tokens truncation truncation_side
truncation_direction auto_truncate max_length max_input_length num_ctx
normalize normalized normalise embd_normalize pooling pooling_type pooling_method
add_special_tokens late_chunking return_multivector multi_vector lora lora_path adapter
options parameters params kwargs extra_body mm_processor_kwargs chat_template
chat_template_kwargs revision
inputs input input_text texts text content contents images image messages documents
model provider
"""

VECTOR_FIELDS: Final = frozenset(name.replace("_", "") for name in _FIELDS.split())
"""The names in lower case, without underscores: APIs write ``task_type`` and ``taskType``."""


def changes_vectors(name: str) -> bool:
    """Return whether a request field of this name changes the vectors at a known API."""
    return name.lower().replace("_", "").replace("-", "") in VECTOR_FIELDS
