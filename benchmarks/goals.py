"""The goals as data: a figure of embedroute over the same figure of others, in one run."""

from collections.abc import Mapping

import msgspec

from benchmarks.measure import Figures
from benchmarks.workloads import BARE, DECODING

IMPORT = "`import embedroute` beyond starlette, numpy and httpx2"


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """`figure` of `system` at `at` over the least `figure` of `others` at `over_at` (left out, at the same workload)."""

    title: str
    at: str
    others: tuple[str, ...]
    limit: float
    shown: str
    figure: str = "cpu_us"
    system: str = "embedroute"
    over_at: str = ""
    at_least: bool = False

    def ratio(self, results: Mapping[tuple[str, str], Figures]) -> float | None:
        """None where a figure is missing from this run."""
        ours = results.get((self.system, self.at))
        found = [
            results[key]
            for name in self.others
            if (key := (name, self.over_at or self.at)) in results
        ]
        if not ours or not found:
            return None
        return getattr(ours, self.figure) / min(getattr(figures, self.figure) for figures in found)

    def met(self, ratio: float) -> bool:
        return ratio >= self.limit if self.at_least else ratio <= self.limit


def _each_number_at_once(
    title: str, others: tuple[str, ...], limit: float, shown: str
) -> tuple[Goal, ...]:
    return tuple(
        Goal(
            title=title.format(at_once),
            at=f"one-{at_once}",
            others=others,
            limit=limit,
            shown=shown,
        )
        for at_once in (1, 32, 128)
    )


GOALS = (
    *_each_number_at_once(
        "CPU, 1 input, base64, {} at once, over the cheaper decoding bare proxy",
        DECODING,
        1.35,
        "≤ 1.35",
    ),
    Goal(
        title="CPU, 1 input, float, over the same",
        at="one-float",
        others=DECODING,
        limit=1.6,
        shown="≤ 1.6",
    ),
    *_each_number_at_once(
        "CPU, 1 input, base64, {} at once, over LiteLLM", ("litellm",), 1 / 40, "≤ 1/40"
    ),
    *_each_number_at_once(
        "CPU, 1 input, base64, {} at once, over Portkey", ("portkey",), 1 / 3, "≤ 1/3"
    ),
    Goal(
        title="CPU, 128 inputs, base64, over the cheaper decoding bare proxy",
        at="many",
        others=DECODING,
        limit=1.5,
        shown="≤ 1.5",
    ),
    Goal(
        title="CPU, 2048 rows of 1536, float, over the cheaper byte pass-through",
        at="bulk",
        others=BARE,
        limit=2.5,
        shown="≤ 2.5",
    ),
    Goal(
        title="CPU, cache hot, over the static responder",
        at="hot",
        system="embedroute-cache",
        others=("static",),
        limit=1.6,
        shown="≤ 1.6",
    ),
    Goal(
        title="requests/s with micro-batching over without",
        at="micro-on",
        over_at="micro-off",
        others=("embedroute",),
        figure="rate",
        limit=4.0,
        shown="≥ 4",
        at_least=True,
    ),
    Goal(
        title="p99 of small requests during two 2048-batches over idle",
        at="small-busy",
        over_at="small-idle",
        others=("embedroute",),
        figure="p99_ms",
        limit=5.0,
        shown="≤ 5",
    ),
)
IMPORT_LIMIT = 60.0  # ms
