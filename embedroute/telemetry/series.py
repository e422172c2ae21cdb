"""Stores the numbers of metrics, in this process or in files that worker processes share.

prometheus-client's own counters cost 1 to 3 µs per increment, which is 10 % of a request. Here a
series is one list, or a part of a shared file, so an increment costs 0.1 µs.
"""

import json
import mmap
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

MOST: Final = 1 << 17
"""Numbers of one process, 1 MiB; far more than the names of a config can make."""

Key = tuple[str, ...]
"""The kind of a series, and its labels."""
Row: TypeAlias = "list[float] | memoryview[float]"
"""The numbers of a series: a list, which is the fastest, or a part of the shared file."""


class SeriesStore:
    """The numbers of all series of one process."""

    def __init__(self, folder: Path | None) -> None:
        """Keep the numbers in memory, or in new files in ``folder``.

        Raises:
            OSError: the files cannot be created.
        """
        self._used = 0
        self._names = None
        if folder is None:
            return
        stem = folder / f"embedroute_{os.getpid()}_{secrets.token_hex(4)}"
        self._names = stem.with_suffix(".names").open("a", encoding="utf-8")
        with stem.with_suffix(".values").open("w+b") as file:
            file.truncate(8 * MOST)
            # Closing the file does not close the map, which keeps its own descriptor.
            self._values = memoryview(mmap.mmap(file.fileno(), 8 * MOST)).cast("d")

    def add(self, key: Key, width: int) -> Row:
        """Add a series, and return its ``width`` numbers, which are changed in place."""
        if self._names is None:
            return [0.0] * width
        start = self._used
        self._used += width
        self._names.write(f"{json.dumps([start, width, *key])}\n")
        self._names.flush()
        return self._values[start : start + width]

    def close(self) -> None:
        """Close the file of names."""
        if self._names is not None:
            self._names.close()


def read_workers(folder: Path) -> Iterator[tuple[int, Mapping[Key, list[float]]]]:
    """Yield the process id and the series of each worker that has files in ``folder``."""
    for file in sorted(folder.glob("embedroute_*.names")):
        numbers = memoryview(file.with_suffix(".values").read_bytes()).cast("d")
        rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        yield (
            int(file.stem.split("_")[1]),
            {tuple(key): list(numbers[start : start + width]) for start, width, *key in rows},
        )


def is_running(pid: int) -> bool:
    """Return whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def add_up(series: Iterable[Mapping[Key, Sequence[float]]]) -> Mapping[Key, list[float]]:
    """Return the sums of the series of several workers."""
    sums: dict[Key, list[float]] = {}
    for worker in series:
        for key, numbers in worker.items():
            earlier = sums.get(key, [0.0] * len(numbers))
            sums[key] = [total + own for total, own in zip(earlier, numbers, strict=True)]
    return sums
