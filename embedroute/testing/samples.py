"""Provides the batches with which a backend is checked, and turns its exceptions into assertions.

The batches cover all that a backend accepts, and do not exceed its limits.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from msgspec.structs import replace

from embedroute.backend import Accepts, Batch
from embedroute.inputs import ImagePart, ImageURL, Part, TextPart

T = TypeVar("T")


def attempt(name: str, advice: str, work: Callable[[], T]) -> T:
    """Call ``work``, which runs the method ``name`` of the backend, and return its result.

    Raises:
        AssertionError: the method raised an exception or ``SystemExit``.
    """
    try:
        return work()
    except (Exception, SystemExit) as error:
        raise describe_exception(name, advice, error) from error


def describe_exception(name: str, advice: str, error: BaseException) -> AssertionError:
    """Create the assertion for an exception of the method ``name``."""
    message = f": {error}" if str(error) else ""
    return AssertionError(f"{name} raised {type(error).__name__}{message}. {advice}")


PNG: Final = ImagePart(ImageURL("data:image/png;base64,iVBORw0KGgo="))
GIF: Final = ImagePart(ImageURL("data:image/gif;base64,R0lGODlhAQABAAAAACw="))


def samples_for(accepts: Accepts, model: str, dimensions: int) -> list[Batch]:
    """Return batches of all accepted kinds and parameters.

    The first has several inputs. Each later one differs from it in one respect.
    """
    most = accepts.max_inputs or 3
    kinds = list(_kinds(accepts, model))
    first = cut(kinds[0], 0, most)
    sizes = [replace(first, dimensions=dimensions)] if accepts.dimensions else []
    types = [replace(first, input_type=input_type) for input_type in accepts.input_types]
    dtypes = [replace(first, dtype=dtype) for dtype in accepts.dtypes if dtype != "float"]
    return [
        first,
        cut(kinds[0], -1, None),
        *(cut(kind, 0, most) for kind in kinds[1:]),
        *sizes,
        *types,
        *dtypes,
    ]


def _kinds(accepts: Accepts, model: str) -> Iterator[Batch]:
    if accepts.texts:
        yield Batch(model=model, texts=("a", "bc", "def"))
    if accepts.tokens:
        yield Batch(model=model, tokens=((1, 2, 3), (4,)))
    if "image" in accepts.modalities:
        mixed = (TextPart("a"), PNG) if "text" in accepts.modalities else (GIF,)
        yield Batch(model=model, parts=(mixed, (PNG,)))


def cut(batch: Batch, start: int, stop: int | None) -> Batch:
    """Return a batch of the inputs from ``start`` to ``stop``."""
    return replace(
        batch,
        texts=batch.texts[start:stop],
        tokens=batch.tokens[start:stop],
        parts=batch.parts[start:stop],
    )


def reversed_batch(batch: Batch) -> Batch:
    """Return a batch with the inputs in reverse order."""
    return replace(
        batch, texts=batch.texts[::-1], tokens=batch.tokens[::-1], parts=batch.parts[::-1]
    )


def changed(batch: Batch) -> Iterator[tuple[str, Batch]]:
    """Yield copies of a batch, each with one input or part changed, and the place of the change."""
    for index, text in enumerate(batch.texts):
        yield f"texts[{index}]", replace(batch, texts=put(batch.texts, index, text * 2))
    for index, ids in enumerate(batch.tokens):
        yield f"tokens[{index}]", replace(batch, tokens=put(batch.tokens, index, (*ids, 5)))
    for index, parts in enumerate(batch.parts):
        for inner, part in enumerate(parts):
            other = put(parts, inner, _another(part))
            yield f"parts[{index}][{inner}]", replace(batch, parts=put(batch.parts, index, other))


def put(items: Sequence[T], index: int, item: T) -> tuple[T, ...]:
    """Return a copy of ``items`` with ``item`` at ``index``."""
    return (*items[:index], item, *items[index + 1 :])


def _another(part: Part) -> Part:
    if isinstance(part, TextPart):
        return TextPart(part.text * 2)
    return GIF if part == PNG else PNG
