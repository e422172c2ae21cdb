"""Marks the cases of a table that the default run of ``scripts/test`` leaves out.

Every table keeps at least one quick case of each kind, so that the default run sees a defect that
is not specific to a case.
"""

from collections.abc import Callable, Iterable

import pytest


def slow_unless(is_quick: Callable[..., bool], cases: Iterable[object]) -> list[object]:
    """Mark each of ``cases`` ``slow`` unless ``is_quick(case)``: ``scripts/test --slow`` runs it."""
    return _marked(pytest.mark.slow, is_quick, cases)


def thorough_unless(is_quick: Callable[..., bool], cases: Iterable[object]) -> list[object]:
    """Mark each of ``cases`` ``thorough`` unless ``is_quick(case)``.

    ``scripts/test --coverage`` runs it.
    """
    return _marked(pytest.mark.thorough, is_quick, cases)


def _marked(
    mark: pytest.MarkDecorator, is_quick: Callable[..., bool], cases: Iterable[object]
) -> list[object]:
    return [case if is_quick(case) else pytest.param(case, marks=mark) for case in cases]
