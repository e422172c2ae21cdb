"""Counts the objects that an object keeps alive, to test that its memory is bounded."""

import gc
from types import FunctionType, ModuleType

SHARED = (type, ModuleType, FunctionType)
"""Types of objects that belong to the program and not to one object."""


def count_reachable(root: object) -> int:
    """Return the number of objects that ``root`` refers to, directly or through others.

    Containers that are only numbers and texts are counted by their elements.
    """
    seen = {id(root): root}
    remaining = [root]
    while remaining:
        for found in gc.get_referents(remaining.pop()):
            if id(found) not in seen and not isinstance(found, SHARED):
                seen[id(found)] = found
                remaining.append(found)
    return len(seen)
