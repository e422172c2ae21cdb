"""How a mistake of an author's code is told: whatever it raises becomes an assertion that says what to do."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def attempt(name: str, advice: str, work: Callable[[], T]) -> T:
    """Do what calls an author's code.

    Raises:
        AssertionError: ``name`` raised something, an exit included.
    """
    try:
        return work()
    except (Exception, SystemExit) as error:
        raise told(name, advice, error) from error


def told(name: str, advice: str, error: BaseException) -> AssertionError:
    """Word what code of the author's raised."""
    said = f": {error}" if str(error) else ""
    return AssertionError(f"{name} raised {type(error).__name__}{said}. {advice}")
