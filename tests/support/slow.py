"""Marks the cases of a table that the default run of ``scripts/test`` leaves out.

Every table keeps at least one quick case of each kind, so that the default run sees a defect that
is not specific to a case.
"""

import os
from collections.abc import Callable, Iterable

import pytest

QUICK = "EMBEDROUTE_TESTS_QUICK"
"""The variable that is set if the tests marked ``thorough`` are left out."""


def examples(number: int, *, quick: int) -> int:
    """Return the number of examples of a property: ``quick`` in the default run."""
    return quick if os.environ.get(QUICK) else number


def slow_unless(is_quick: Callable[..., bool], cases: Iterable[object]) -> list[object]:
    """Mark each of ``cases`` ``slow`` unless ``is_quick(case)``: ``scripts/test --slow`` runs it."""
    return _marked(pytest.mark.slow, is_quick, cases)


def thorough_unless(is_quick: Callable[..., bool], cases: Iterable[object]) -> list[object]:
    """Mark each of ``cases`` ``thorough`` unless ``is_quick(case)``.

    ``scripts/test --coverage`` runs it.
    """
    return _marked(pytest.mark.thorough, is_quick, cases)


def thorough_rows_unless(
    is_quick: Callable[..., bool], rows: Iterable[tuple[object, ...]]
) -> list[object]:
    """Mark like ``thorough_unless`` the rows of a table, each with the values of several arguments."""
    return [
        row if is_quick(row) else pytest.param(*row, marks=pytest.mark.thorough) for row in rows
    ]


def _marked(
    mark: pytest.MarkDecorator, is_quick: Callable[..., bool], cases: Iterable[object]
) -> list[object]:
    return [case if is_quick(case) else pytest.param(case, marks=mark) for case in cases]
