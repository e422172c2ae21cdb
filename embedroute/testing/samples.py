"""How a mistake of an author's code is told: whatever it raises becomes an assertion that says what to do.

The batches that a backend is tried with: of all that it accepts, and no larger than it accepts.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from msgspec.structs import replace

from embedroute.backend import Accepts, Batch
from embedroute.inputs import ImagePart, ImageURL, Part, TextPart

T = TypeVar("T")


def attempt(name: str, advice: str, work: Callable[[], T]) -> T:
    """Do what calls an author's code.

    Raises:
        AssertionError: ``name`` raised something, an exit included.
    """
    try:
        return work()
    except (Exception, SystemExit) as error:
        raise describe_exception(name, advice, error) from error


def describe_exception(name: str, advice: str, error: BaseException) -> AssertionError:
    """Word what code of the author's raised."""
    said = f": {error}" if str(error) else ""
    return AssertionError(f"{name} raised {type(error).__name__}{said}. {advice}")


PNG: Final = ImagePart(ImageURL("data:image/png;base64,iVBORw0KGgo="))
GIF: Final = ImagePart(ImageURL("data:image/gif;base64,R0lGODlhAQABAAAAACw="))


def samples_for(accepts: Accepts, model: str, dimensions: int) -> list[Batch]:
    """Write batches of all that is accepted; the first is of several inputs, and each later one changes one thing."""
    most = accepts.max_inputs or 3
    kinds = list(_kinds(accepts, model))
    first = cut(kinds[0], 0, most)
    sizes = [replace(first, dimensions=dimensions)] if accepts.dimensions else []
    types = [replace(first, input_type=word) for word in accepts.input_types]
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
    """Keep some of a batch's inputs."""
    return replace(
        batch,
        texts=batch.texts[start:stop],
        tokens=batch.tokens[start:stop],
        parts=batch.parts[start:stop],
    )


def reversed_batch(batch: Batch) -> Batch:
    """Put a batch's inputs in reverse."""
    return replace(
        batch, texts=batch.texts[::-1], tokens=batch.tokens[::-1], parts=batch.parts[::-1]
    )


def changed(batch: Batch) -> Iterator[tuple[str, Batch]]:
    """Change one input at a time, of several parts each for itself; the first of a pair says which."""
    for at, text in enumerate(batch.texts):
        yield f"texts[{at}]", replace(batch, texts=put(batch.texts, at, text * 2))
    for at, ids in enumerate(batch.tokens):
        yield f"tokens[{at}]", replace(batch, tokens=put(batch.tokens, at, (*ids, 5)))
    for at, parts in enumerate(batch.parts):
        for inner, part in enumerate(parts):
            other = put(parts, inner, _another(part))
            yield f"parts[{at}][{inner}]", replace(batch, parts=put(batch.parts, at, other))


def put(items: Sequence[T], at: int, item: T) -> tuple[T, ...]:
    """Put another item in the place of one."""
    return (*items[:at], item, *items[at + 1 :])


def _another(part: Part) -> Part:
    if isinstance(part, TextPart):
        return TextPart(part.text * 2)
    return GIF if part == PNG else PNG
