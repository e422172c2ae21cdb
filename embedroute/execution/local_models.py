"""Runs local models: loaded once per gateway, executed in slices on a few worker threads."""

import os
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec

from embedroute import vectors
from embedroute.backend import BackendBase, Batch, LocalBackend, Vectors
from embedroute.errors import UpstreamError
from embedroute.execution.worker_threads import Workers
from embedroute.inputs import estimate_sizes

Check = Callable[[Vectors, Batch], Vectors]
"""Returns the validated answer to a batch; raises if it is not one valid row per input."""

SLICE_SECONDS: Final = 0.02
"""Longest intended duration of a slice in seconds; slices are planned for half of it."""
FIRST_SLICE: Final = 8
"""Inputs in the first slice of a batch, or fewer if the model is known to be slow."""
GROWTH: Final = 8
"""Maximum factor by which a slice is larger than the one before."""


class LocalModels:
    """The local models of one gateway, for all of its event loops.

    Each backend is loaded once and has its own worker threads, at most ``threads``. A model that
    hangs or is being loaded does not block other models.
    """

    def __init__(self, threads: int = 2) -> None:
        """Create an empty set of models; the first request loads its model and starts threads."""
        self._threads = threads
        self._models: dict[int, LocalModel] = {}
        self._process = os.getpid()

    async def run(self, backend: LocalBackend, batch: Batch, check: Check) -> Vectors:
        """Embed ``batch`` in worker threads; load the model first if necessary.

        ``check`` validates each slice of a batch that is split. The answer to a batch that fits
        into one slice is returned unchecked.
        """
        if self._process != os.getpid():
            self._forget_threads()
        model = self._models.get(id(backend))
        if model is None:
            # setdefault is atomic, so two event loops in two threads get the same model.
            model = self._models.setdefault(id(backend), LocalModel(backend, self._threads))
        return await model.run(batch, check)

    def keep(self, backends: Collection[BackendBase]) -> None:
        """Forget the models of other backends. Calls that use one keep it until they end."""
        kept = set(map(id, backends))
        self._models = {key: model for key, model in self._models.items() if key in kept}

    def _forget_threads(self) -> None:
        """Keep the models that the parent process loaded, without its threads."""
        models = {key: model.without_threads() for key, model in self._models.items()}
        self._models = models
        self._process = os.getpid()


class Pace(NamedTuple):
    """Speed of the last slice: seconds per input and per estimated token, and its inputs."""

    per_input: float
    per_token: float
    inputs: int


class LocalModel:
    """One local backend of a gateway, with its loaded model and its worker threads."""

    def __init__(self, backend: LocalBackend, threads: int, loaded: Sequence[object] = ()) -> None:
        """Create a model; ``loaded`` holds the loaded model if there is one, else nothing."""
        self.backend = backend
        self.pace: Pace | None = None
        self._threads = threads
        most = backend.max_threads
        limit = threads if most is None else min(threads, most)
        self._workers = Workers(f"embedroute {type(backend).__name__}", limit)
        self._loading = threading.Lock()
        self._loaded = loaded

    def without_threads(self) -> "LocalModel":
        """Return a copy for a forked process, in which none of the threads exist."""
        return LocalModel(self.backend, self._threads, self._loaded)

    async def run(self, batch: Batch, check: Check) -> Vectors:
        """Embed ``batch`` slice by slice; exceptions of the backend are raised unchanged."""
        work = _BatchInSlices(self, batch, check)
        await self._workers.run(work.step)
        return work.answer

    def is_loaded(self) -> bool:
        """Return whether ``embed`` can be called."""
        return bool(self._loaded)

    def load(self) -> None:
        """Load the model unless another thread has loaded it; a failed load can be repeated."""
        with self._loading:
            if not self._loaded:
                self._loaded = (self.backend.load(),)

    def embed(self, batch: Batch) -> Vectors:
        """Run the loaded model on ``batch`` in this thread."""
        return self.backend.run(self._loaded[0], batch)


class _BatchInSlices:
    """One batch that a local model embeds slice by slice."""

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

        Loading is a separate step, so that no slice runs for a request cancelled during the load.
        """
        model = self._model
        batch = self._batch
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
        maximum = GROWTH * pace.inputs if pace else FIRST_SLICE
        minimum = self._model.backend.min_slice
        return slice_stop(self._tokens, self._start, maximum, minimum, pace or self._model.pace)

    def _embed(self, part: Batch, stop: int) -> Vectors:
        began = time.perf_counter()
        try:
            answer = self._model.embed(part)
        except UpstreamError as error:
            if error.input_index is not None:
                error.input_index += self._start
            raise
        seconds = time.perf_counter() - began
        tokens = self._tokens[stop - 1] - (self._tokens[self._start - 1] if self._start else 0)
        self._pace = Pace(seconds / len(part), seconds / max(tokens, 1), len(part))
        self._model.pace = self._pace
        return answer


def slice_stop(tokens: Sequence[int], start: int, most: int, least: int, pace: Pace | None) -> int:
    """Return the end of the slice that begins at ``start``.

    The slice has at least ``least`` and at most ``most`` inputs. Within these bounds it has as many
    as take half of ``SLICE_SECONDS`` at ``pace``, both by number and by tokens. ``tokens`` holds
    running sums of the inputs' estimated tokens, because the lengths of texts can differ widely.
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
    """Return a batch with the inputs from ``start`` to ``stop`` only."""
    return msgspec.structs.replace(
        batch,
        texts=batch.texts[start:stop],
        tokens=batch.tokens[start:stop],
        parts=batch.parts[start:stop],
    )


def joined(answers: Sequence[Vectors]) -> Vectors:
    """Join the validated answers to the slices of one batch.

    Token counts are summed. If a slice has no count, the result has none.

    Raises:
        InvalidUpstreamResponse: the slices differ in width.
    """
    row_count = sum(len(answer.array) for answer in answers)
    rows = vectors.gathered(row_count, (answer.array for answer in answers))
    counts = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
    modality_tokens: Counter[str] = Counter()
    for answer in answers:
        modality_tokens.update(answer.modality_tokens)
    return Vectors(
        rows,
        prompt_tokens=sum(counts) if len(counts) == len(answers) else None,
        modality_tokens=modality_tokens
        if all(answer.modality_tokens for answer in answers)
        else {},
    )
