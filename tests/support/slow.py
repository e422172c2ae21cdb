"""Marks the cases of a table that only ``scripts/test --slow`` runs."""

from collections.abc import Callable, Iterable

import pytest


def slow_unless(is_quick: Callable[..., bool], cases: Iterable[object]) -> list[object]:
    """Return ``cases``, each of them marked ``slow`` unless ``is_quick(case)``.

    A table keeps at least one quick case of each kind, so that the default run sees a defect that
    is not specific to a case.
    """
    return [
        case if is_quick(case) else pytest.param(case, marks=pytest.mark.slow) for case in cases
    ]
