"""Provides the ``onnx`` backend: a folder with ``model.onnx`` and ``tokenizer.json``.

The export of a model for sentence embeddings has this form, in one folder or with the model in its
subfolder ``onnx``. It needs neither torch nor transformers.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final, get_args

import msgspec

from embedroute import vectors
from embedroute.backend import Batch, LocalBackend, Vectors
from embedroute.backends._local_library import (
    Tokenizer,
    check_lengths,
    copy_tokenizer,
    longest_text,
    rejected,
)
from embedroute.errors import ConfigError, MissingExtra

MODEL_FILES: Final = ("model.onnx", "onnx/model.onnx")
POOLING_MODES: Final[Mapping[str, vectors.Pooling]] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
"""Key of ``1_Pooling/config.json`` → method."""


class Loaded(msgspec.Struct, frozen=True):
    """A session of onnxruntime with its tokenizer.

    ``inputs`` are the names of the model's inputs. ``most`` is the maximum number of tokens of a
    text, or None. ``pooling`` is None if it is not known.
    """

    session: Any
    tokenizer: Tokenizer
    inputs: Sequence[str]
    most: int | None
    pooling: vectors.Pooling | None


class ONNX(LocalBackend, frozen=True, kw_only=True):
    """A transformer in ONNX format.

    ``path`` is the folder, and ``file`` the model in it, for example ``onnx/model_int8.onnx``. The
    first output must be one vector per text, shape (n, d), or one per token, shape (n, m, d).
    ``pooling`` makes one of the latter; by default it is that of the folder
    ``1_Pooling``. ``normalize`` scales vectors to length 1. ``max_tokens`` is the maximum length of
    a text, by default that of the tokenizer or of ``config.json``. A longer text is refused.
    ``threads`` limits the threads that compute one call. ``providers`` are the execution providers
    of onnxruntime, such as ``CUDAExecutionProvider``.
    """

    min_slice: ClassVar[int] = 8

    path: str
    file: str | None = None
    pooling: vectors.Pooling | None = None
    normalize: bool = True
    max_tokens: int | None = None
    threads: int | None = None
    providers: Sequence[str] = ("CPUExecutionProvider",)

    def __post_init__(self) -> None:
        """Report a missing package or file at startup instead of at the first request.

        Raises:
            ValueError: the folder does not have both files.
        """
        if find_spec("onnxruntime") is None:
            raise MissingExtra("onnx", "onnxruntime")
        if find_spec("tokenizers") is None:
            raise MissingExtra("onnx", "tokenizers")
        names = [self.file] if self.file else list(MODEL_FILES)
        if not any((Path(self.path) / name).is_file() for name in names):
            raise ValueError(f"path {self.path!r} has no file {' or '.join(names)}")
        if not (Path(self.path) / "tokenizer.json").is_file():
            raise ValueError(f"path {self.path!r} has no file tokenizer.json")

    def load(self) -> Loaded:
        """Open the session, and find out the pooling and the length of the context."""
        runtime = import_module("onnxruntime")
        options = runtime.SessionOptions()
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        folder = Path(self.path)
        names = [self.file] if self.file else MODEL_FILES
        file = next(folder / name for name in names if (folder / name).is_file())
        session = runtime.InferenceSession(str(file), options, providers=list(self.providers))
        own = import_module("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
        most = self.max_tokens or longest_text(own) or _read_context(folder)
        tokenizer = copy_tokenizer(own)
        inputs = [each.name for each in session.get_inputs()]
        return Loaded(session, tokenizer, inputs, most, self.pooling or _read_pooling(folder))

    def run(self, model: Loaded, batch: Batch) -> Vectors:
        """Run the model on the padded texts, and pool the vectors of their tokens."""
        ids = [text.ids for text in model.tokenizer.encode_batch_fast(list(batch.texts))]
        counts = [len(each) for each in ids]
        check_lengths(counts, model.most, "Shorten it.")
        if not all(counts):
            raise rejected(counts.index(0), "The text has no token.")
        padded, mask = vectors.pad(ids)
        feeds = {"input_ids": padded, "attention_mask": mask, "token_type_ids": 0 * mask}
        used = {name: feeds[name] for name in model.inputs if name in feeds}
        rows = model.session.run(None, used)[0]
        if rows.ndim == 3:
            rows = vectors.pool_tokens(rows, mask, _known(model.pooling))
        array = vectors.scaled(rows) if self.normalize else vectors.as_float32(rows)
        return Vectors(array, prompt_tokens=sum(counts))


def _known(pooling: vectors.Pooling | None) -> vectors.Pooling:
    if pooling is None:
        ways = ", ".join(f'"{way}"' for way in get_args(vectors.Pooling))
        raise ConfigError(
            [f"The ONNX model returns one vector per token. Set pooling to one of {ways}."]
        )
    return pooling


def _read_pooling(folder: Path) -> vectors.Pooling | None:
    config = _read_json(folder / "1_Pooling" / "config.json")
    modes: list[vectors.Pooling] = [mode for key, mode in POOLING_MODES.items() if config.get(key)]
    return modes[0] if len(modes) == 1 else None


def _read_context(folder: Path) -> int | None:
    most = _read_json(folder / "config.json").get("max_position_embeddings")
    return most if isinstance(most, int) else None


def _read_json(path: Path) -> dict[str, object]:
    return json.loads(path.read_bytes()) if path.is_file() else {}
