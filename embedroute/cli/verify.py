"""Whether the endpoints of a model really give the same vectors: a fixed probe set, embedded on each, compared in pairs."""

from collections.abc import Mapping
from itertools import combinations
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from embedroute.errors import EmbedrouteError
from embedroute.gateway import Gateway
from embedroute.routing import ResolvedEndpoint
from embedroute.text import echo
from embedroute.vectors import Array

PROBES: Final = (
    "The cat sat on the mat.",
    "a",
    "Der Fluß überschwemmte im März die Felder.",
    "機械学習モデルは文章をベクトルに変換する。",
    "SELECT name, COUNT(*) FROM users WHERE age > 30 GROUP BY name;",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "Quarterly revenue fell by 12.5 % to $3,401 million, the lowest since 2009.",
    "🙂 emoji, tabs\tand   spaces; “quotes” — dashes…",
    "https://example.com/path?query=1&other=two#fragment",
    "The patient was given 5 mg of the drug twice a day for two weeks. " * 12,
)
"""Short and long, several scripts, code, numbers and marks: where tokenizers, prefixes and truncation differ."""

Outcome = Literal["verified", "near", "different"]


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """The least cosine over all probes for two endpoints to count as verified, or as near; lengths agree as closely."""

    verified: float = 0.9999
    near: float = 0.999


THRESHOLDS: Final = Thresholds()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Two endpoints compared: the lowest cosine and the largest difference of a number over all probes.

    ``reason`` says what the figures do not: that an endpoint failed, or that its vectors have other lengths.
    """

    model: str
    left: str
    right: str
    verdict: Outcome
    cosine: float | None = None
    difference: float | None = None
    reason: str = ""

    @property
    def shown_cosine(self) -> str:
        """The cosine as a table shows it."""
        return "-" if self.cosine is None else f"{self.cosine:.6f}"

    @property
    def shown_difference(self) -> str:
        """The difference as a table shows it."""
        return "-" if self.difference is None else f"{self.difference:.2e}"


Answers = Mapping[str, Array | EmbedrouteError]
"""Endpoint → its vectors of the probes, or why there are none."""


async def verify(
    gateway: Gateway, model: str, thresholds: Thresholds = THRESHOLDS
) -> list[Verdict]:
    """Embed the probes on every endpoint of ``model`` and compare the endpoints in pairs.

    An endpoint that fails is compared as "different" from all: what cannot be asked cannot be vouched for.

    Raises:
        ModelNotFound: nobody knows the model.
    """
    route = gateway.directory.resolve(model)
    answers = {
        candidate.name: await _embedded(gateway, model, candidate) for candidate in route.candidates
    }
    return [
        _compare(model, left, right, answers, thresholds)
        for left, right in combinations(answers, 2)
    ]


async def _embedded(
    gateway: Gateway, model: str, candidate: ResolvedEndpoint
) -> Array | EmbedrouteError:
    try:
        return (await gateway.embed_at(candidate, list(PROBES), model=model)).vectors
    except EmbedrouteError as error:
        return error


def _compare(
    model: str, left: str, right: str, answers: Answers, thresholds: Thresholds
) -> Verdict:
    one, other = answers[left], answers[right]
    pair = Verdict(model=model, left=left, right=right, verdict="different")
    if isinstance(one, EmbedrouteError) or isinstance(other, EmbedrouteError):
        silent = {
            name: it.message
            for name, it in ((left, one), (right, other))
            if isinstance(it, EmbedrouteError)
        }
        return replace(
            pair, reason="; ".join(f"{name} failed: {echo(said)}" for name, said in silent.items())
        )
    cosine, difference = compare_cosine(one, other)
    # What points the same way and differs in length is not the same vector: dot products with the two do not compare.
    ratio = norm_ratio(one, other)
    verdict = judge(min(cosine, ratio), thresholds)
    why = (
        f"lengths as far apart as 1 : {1 / ratio:.4g}"
        if verdict != "verified" and ratio < cosine
        else ""
    )
    return replace(pair, cosine=cosine, difference=difference, verdict=verdict, reason=why)


def judge(least: float, thresholds: Thresholds) -> Outcome:
    """Tell what a lowest cosine means, or the lowest proportion of two lengths."""
    if least >= thresholds.verified:
        return "verified"
    return "near" if least >= thresholds.near else "different"


def compare_cosine(left: Array, right: Array) -> tuple[float, float]:
    """Compare two (n, d) arrays row by row: the lowest cosine, and the largest difference of two numbers."""
    one, other = left.astype("f8"), right.astype("f8")
    lengths = ((one * one).sum(axis=1) * (other * other).sum(axis=1)) ** 0.5
    cosines = (one * other).sum(axis=1) / lengths.clip(min=5e-324)
    return float(cosines.min()), float(abs(one - other).max())


def norm_ratio(left: Array, right: Array) -> float:
    """Compare the lengths of two (n, d) arrays row by row: the shorter by the longer, where they are farthest apart."""
    one, other = left.astype("f8"), right.astype("f8")
    ratios = ((one * one).sum(axis=1) / (other * other).sum(axis=1)) ** 0.5
    return float(min(ratios.min(), 1 / ratios.max()))
