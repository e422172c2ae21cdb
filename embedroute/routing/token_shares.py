"""Splits the tokens of a call among its inputs. Pure functions."""

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

from embedroute.inputs import Input, content_size, estimate_sizes


def share_out(total: int, sizes: Sequence[int]) -> list[int]:
    """Split ``total`` in proportion to ``sizes``, into integers that add up to it exactly."""
    total_size = sum(sizes)
    bounds = [total * running // total_size for running in accumulate(sizes)]
    return [bound - previous for bound, previous in zip(bounds, [0, *bounds], strict=False)]


def share_modalities(
    items: Collection[Input], tokens: int, modality_tokens: Mapping[str, int]
) -> tuple[list[int], list[dict[str, int]]]:
    """Split ``tokens`` and those of each modality among inputs; both add up exactly.

    An input gets its share of a modality in proportion to its own content of it. The tokens that
    belong to no modality are split in proportion to input length.
    """
    sizes = estimate_sizes(items)
    splits: list[dict[str, int]] = [{} for _ in items]
    for modality, total in modality_tokens.items():
        contents = [content_size(item, modality) for item in items]
        shares = share_out(total, contents if any(contents) else sizes)
        for split_tokens, share in zip(splits, shares, strict=True):
            if share:
                split_tokens[modality] = share
    others = share_out(tokens - sum(modality_tokens.values()), sizes)
    totals = [sum(part.values()) + other for part, other in zip(splits, others, strict=True)]
    return totals, splits
