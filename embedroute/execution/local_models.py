"""Local models: loaded once per gateway, run in slices on a few worker threads of their own."""

import os
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec

from embedroute import vectors
from embedroute.backend import Batch, LocalBackend, Vectors
from embedroute.execution.worker_threads import Workers
from embedroute.inputs import estimate_sizes

Check = Callable[[Vectors, Batch], Vectors]
"""Refuse an answer that is not one sound row per input of a batch."""

SLICE_SECONDS: Final = 0.02
"""The most that a slice should take; slices are planned to take half of it."""
FIRST_SLICE: Final = 8
"""Inputs of a batch's first slice, unless the model is known to be slower."""
GROWTH: Final = 8
"""How many times as many inputs as the one before a slice may have."""


class LocalModels:
    """The local models of one gateway, for all of its event loops.

    Each backend is loaded once and has worker threads of its own, at most ``threads`` of them. A
    model that hangs or is being loaded does not hold up another one.
    """

    def __init__(self, threads: int = 2) -> None:
        """Load nothing and start no thread: the first request does."""
        self._threads = threads
        self._models: dict[int, LocalModel] = {}
        self._process = os.getpid()

    async def run(self, backend: LocalBackend, batch: Batch, check: Check) -> Vectors:
        """Embed ``batch`` in worker threads, and load the model first if it is not loaded.

        ``check`` is applied to each slice of a batch that was cut. A batch that fits into one slice
        is returned unchecked.
        """
        if self._process != os.getpid():
            self._forget_threads()
        model = self._models.get(id(backend))
        if model is None:
            # setdefault is atomic, so that two event loops in two threads get the same model.
            model = self._models.setdefault(id(backend), LocalModel(backend, self._threads))
        return await model.run(batch, check)

    def _forget_threads(self) -> None:
        """Keep the loaded models of the process that this one was forked from, and no threads."""
        models = {key: model.without_threads() for key, model in self._models.items()}
        self._models, self._process = models, os.getpid()


class Pace(NamedTuple):
    """How long the last slice took: seconds per input and per estimated token, and its inputs."""

    per_input: float
    per_token: float
    inputs: int


class LocalModel:
    """One local backend of a gateway: its loaded model and its worker threads."""

    def __init__(self, backend: LocalBackend, threads: int, loaded: Sequence[object] = ()) -> None:
        """Take over what is ``loaded`` already: nothing, or one model."""
        self.backend = backend
        self.pace: Pace | None = None
        self._threads = threads
        self._workers = Workers(f"embedroute {type(backend).__name__}", threads)
        self._loading = threading.Lock()
        self._loaded = loaded

    def without_threads(self) -> "LocalModel":
        """Copy this model for a forked process, in which none of its threads exists."""
        return LocalModel(self.backend, self._threads, self._loaded)

    async def run(self, batch: Batch, check: Check) -> Vectors:
        """Embed ``batch`` slice by slice; raise what ``load`` or ``run`` of the backend raises."""
        work = _BatchInSlices(self, batch, check)
        await self._workers.run(work.step)
        return work.answer

    def is_loaded(self) -> bool:
        """Whether ``embed`` can be called."""
        return bool(self._loaded)

    def load(self) -> None:
        """Load the model, unless another thread did meanwhile; a failed load changes nothing."""
        with self._loading:
            if not self._loaded:
                self._loaded = (self.backend.load(),)

    def embed(self, batch: Batch) -> Vectors:
        """Run the loaded model on ``batch`` in this thread."""
        return self.backend.run(self._loaded[0], batch)


class _BatchInSlices:
    """One batch on its way through a local model."""

    def __init__(self, model: LocalModel, batch: Batch, check: Check) -> None:
        self.answer: Vectors
        self._model = model
        self._batch = batch
        self._check = check
        self._start = 0
        self._pace: Pace | None = None
        self._answers: list[Vectors] = []
        self._tokens: Sequence[int] = ()

    def step(self) -> bool:
        """Load the model or embed the next slice; return whether the batch is finished.

        Loading is a step of its own, so that a caller who has left meanwhile gets no slice.
        """
        model, batch = self._model, self._batch
        if not model.is_loaded():
            model.load()
            return False
        if not self._tokens:
            self._tokens = list(accumulate(estimate_sizes(batch.inputs)))
        stop = self._next_stop()
        if stop == len(batch) and self._start == 0:
            self.answer = self._embed(batch, stop)
            return True
        part = cut_part(batch, self._start, stop)
        self._answers.append(self._check(self._embed(part, stop), part))
        self._start = stop
        if stop < len(batch):
            return False
        self.answer = joined(self._answers)
        return True

    def _next_stop(self) -> int:
        pace = self._pace
        most = GROWTH * pace.inputs if pace else FIRST_SLICE
        least = self._model.backend.min_slice
        return slice_stop(self._tokens, self._start, most, least, pace or self._model.pace)

    def _embed(self, part: Batch, stop: int) -> Vectors:
        began = time.perf_counter()
        answer = self._model.embed(part)
        took = time.perf_counter() - began
        tokens = self._tokens[stop - 1] - (self._tokens[self._start - 1] if self._start else 0)
        self._pace = Pace(took / len(part), took / max(tokens, 1), len(part))
        self._model.pace = self._pace
        return answer


def slice_stop(tokens: Sequence[int], start: int, most: int, least: int, pace: Pace | None) -> int:
    """Return the end of the slice that begins at ``start``.

    It has at most ``most`` inputs, at least ``least``, and otherwise as many as should take half
    of ``SLICE_SECONDS`` at ``pace``, by their number and by their tokens. ``tokens`` holds running
    sums of the estimated tokens of the inputs: the texts of a batch may differ in length by far.
    """
    stop = start + most
    if pace is not None:
        seconds = SLICE_SECONDS / 2
        before = tokens[start - 1] if start else 0
        by_number = start + int(seconds / max(pace.per_input, 1e-9))
        by_tokens = bisect_right(tokens, before + seconds / max(pace.per_token, 1e-9))
        stop = min(stop, by_number, by_tokens)
    return min(max(stop, start + max(least, 1)), len(tokens))


def cut_part(batch: Batch, start: int, stop: int) -> Batch:
    """Cut the inputs from ``start`` to ``stop`` out of a batch."""
    return msgspec.structs.replace(
        batch,
        texts=batch.texts[start:stop],
        tokens=batch.tokens[start:stop],
        parts=batch.parts[start:stop],
    )


def joined(answers: Sequence[Vectors]) -> Vectors:
    """Join the checked answers of the slices of one batch.

    Token counts are summed. Where a slice has none, the whole has none, and is estimated.

    Raises:
        InvalidUpstreamResponse: the slices differ in width.
    """
    rows = vectors.gathered(sum(len(it.array) for it in answers), (it.array for it in answers))
    counts = [it.prompt_tokens for it in answers if it.prompt_tokens is not None]
    split: Counter[str] = Counter()
    for answer in answers:
        split.update(answer.modality_tokens)
    return Vectors(
        rows,
        prompt_tokens=sum(counts) if len(counts) == len(answers) else None,
        modality_tokens=split if all(it.modality_tokens for it in answers) else {},
    )
