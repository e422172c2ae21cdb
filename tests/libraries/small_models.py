"""Small models in the formats of the real libraries, with weights from a fixed random generator."""

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

WORDS = ["the", "cat", "sat", "on", "a", "mat", "stock", "prices", "fell", "ready"]
LETTERS = [letter for char in "abcdefghijklmnopqrstuvwxyz" for letter in (char, f"##{char}")]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS + LETTERS)]
WIDTH = 16
CONTEXT = 32


def make_tokenizer(*, special: bool = True) -> Tokenizer:
    """A WordPiece tokenizer; ``special`` adds ``[CLS]`` and ``[SEP]``."""
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    if special:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return tokenizer


def table() -> np.ndarray:
    """One vector per token, shape (vocabulary, width)."""
    random = np.random.default_rng(7)
    return random.standard_normal((len(VOCABULARY), WIDTH)).astype(np.float32)


def make_onnx(folder: Path, *, pooled: bool = False, pooling: str | None = "mean_tokens") -> Path:
    """A graph that looks up the vectors of tokens; ``pooled`` has it average them itself."""
    import onnx  # noqa: PLC0415 - only some of the environments have it
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["states"])]
    shape = ["n", "m", WIDTH]
    if pooled:
        nodes.append(helper.make_node("ReduceMean", ["states"], ["mean"], axes=[1], keepdims=0))
        shape = ["n", WIDTH]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "m"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        nodes, "small", inputs, [output], [numpy_helper.from_array(table(), "table")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(
        json.dumps({"max_position_embeddings": CONTEXT, "pad_token_id": 0})
    )
    if pooling:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        config = {f"pooling_mode_{pooling}": True, "pooling_mode_max_tokens": False}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return folder
