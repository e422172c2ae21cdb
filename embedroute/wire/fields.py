"""The fields of a body by path, for answers that name the one at fault: the keys of each object, the words of each choice."""

from typing import Final, get_args

from embedroute.inputs import ImageURL
from embedroute.wire.preferences import MaxPrice, Percentiles, Preferences, Quantization, Sort, SortKey
from embedroute.wire.requests import (
    Content,
    CreateEmbeddingRequest,
    Debug,
    Dtype,
    EmbeddingOptions,
    GoogleOptions,
    GoogleTask,
    MistralOptions,
)

FIELDS: Final = {
    "": CreateEmbeddingRequest.__struct_fields__,
    "provider": Preferences.__struct_fields__,
    "provider.sort": Sort.__struct_fields__,
    "provider.max_price": MaxPrice.__struct_fields__,
    "provider.preferred_max_latency": Percentiles.__struct_fields__,
    "provider.preferred_min_throughput": Percentiles.__struct_fields__,
    "embedding_options": EmbeddingOptions.__struct_fields__,
    "embedding_options.google": GoogleOptions.__struct_fields__,
    "embedding_options.mistral": MistralOptions.__struct_fields__,
    "debug": Debug.__struct_fields__,
    **{f"{name}[]": Content.__struct_fields__ for name in ("input", "inputs")},
    **{f"{name}[].content[]": ("type", "text", "image_url") for name in ("input", "inputs")},
    **{f"{name}[].content[].image_url": ImageURL.__struct_fields__ for name in ("input", "inputs")},
}
"""The objects of a body, by path, with the keys that each has; array indexes stand as ``[]``."""

CHOICES: Final = {
    "encoding_format": ("float", "base64"),
    "provider.sort": get_args(SortKey),
    "provider.sort.by": get_args(SortKey),
    "provider.sort.partition": ("model", "none"),
    "provider.data_collection": ("allow", "deny"),
    "provider.quantizations[]": get_args(Quantization),
    "embedding_options.google.task_type": get_args(GoogleTask),
    "embedding_options.mistral.output_dtype": get_args(Dtype),
    "debug.trace_level": ("summary", "full"),
    "input[].content[].type": ("text", "image_url"),
    "inputs[].content[].type": ("text", "image_url"),
}
"""The enumerations of a body, by path, with their values."""
