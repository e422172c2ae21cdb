"""``embedroute verify``: verifies that the endpoints of a model return the same vectors.

A fixed set of probe texts is embedded on each endpoint, and the endpoints are compared in pairs.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final, Literal

import anyio
import msgspec
from msgspec.structs import replace

from embedroute.cli.parser import Command, make_gateway
from embedroute.cli.table import print_table
from embedroute.errors import ConfigError, EmbedrouteError, InvalidUpstreamResponse
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
"""Texts for which tokenizers, prefixes and truncation differ.

They are short and long, in several scripts, and contain code, numbers and punctuation.
"""

Outcome = Literal["verified", "near", "different", "unreachable"]

UNREACHABLE_STATUS: Final = 3
"""The exit status if an endpoint could not be compared; argparse uses 2 for usage errors."""


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """The minimum similarity over all probes for two endpoints to be "verified" or "near".

    The similarity of two vectors is their cosine or the ratio of their norms, whichever is lower.
    """

    verified: float = 0.9999
    near: float = 0.999


THRESHOLDS: Final = Thresholds()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The result of comparing two endpoints.

    ``cosine`` is the lowest cosine and ``difference`` the largest absolute difference of two
    components, over all probes. They are None if an endpoint failed. ``reason`` explains a verdict
    that they do not explain: an endpoint failed, or the norms differ. A verdict is "unreachable" if
    an endpoint gave no vectors, so that nothing is known of them.
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
        """The cosine as text for a table."""
        return "-" if self.cosine is None else f"{self.cosine:.6f}"

    @property
    def shown_difference(self) -> str:
        """The difference as text for a table."""
        return "-" if self.difference is None else f"{self.difference:.2e}"


Results = Mapping[str, Array | EmbedrouteError]
"""Endpoint name → its vectors for the probes, or the error that it raised."""


async def verify(
    gateway: Gateway, model: str, thresholds: Thresholds = THRESHOLDS
) -> list[Verdict]:
    """Embed the probes on every endpoint of ``model`` and compare the endpoints in pairs.

    An endpoint without vectors is "unreachable"; one with invalid vectors is "different" from all
    others.

    Raises:
        ModelNotFound: the model is neither in the config nor in the catalogue.
    """
    route = gateway.models.resolve(model)
    results = {
        endpoint.name: await _embed_probes(gateway, model, endpoint)
        for endpoint in route.candidates
    }
    return [
        _compare(model, left, right, results, thresholds)
        for left, right in combinations(results, 2)
    ]


async def _embed_probes(
    gateway: Gateway, model: str, endpoint: ResolvedEndpoint
) -> Array | EmbedrouteError:
    try:
        return (await gateway.embed_at(endpoint, list(PROBES), model=model)).vectors
    except EmbedrouteError as error:
        return error


def _compare(
    model: str, left: str, right: str, results: Results, thresholds: Thresholds
) -> Verdict:
    left_result = results[left]
    right_result = results[right]
    different = Verdict(model=model, left=left, right=right, verdict="different")
    if isinstance(left_result, EmbedrouteError) or isinstance(right_result, EmbedrouteError):
        failures = {
            name: result
            for name, result in ((left, left_result), (right, right_result))
            if isinstance(result, EmbedrouteError)
        }
        return replace(different, verdict=_classify_failures(failures), reason=_reason(failures))
    cosine, difference = compare_cosine(left_result, right_result)
    # The cosine ignores norms, but vectors of different norms give different dot products.
    ratio = norm_ratio(left_result, right_result)
    verdict = classify(min(cosine, ratio), thresholds)
    reason = ""
    if verdict != "verified" and ratio < cosine:
        reason = f"ratio of the norms is 1 : {1 / ratio:.4g}"
    return replace(different, cosine=cosine, difference=difference, verdict=verdict, reason=reason)


def _classify_failures(failures: Mapping[str, EmbedrouteError]) -> Outcome:
    """Return "different" if every failed endpoint did answer, but with invalid vectors."""
    answered = [isinstance(error, InvalidUpstreamResponse) for error in failures.values()]
    return "different" if all(answered) else "unreachable"


def _reason(failures: Mapping[str, EmbedrouteError]) -> str:
    return "; ".join(f"{name} failed: {echo(error.message)}" for name, error in failures.items())


def classify(similarity: float, thresholds: Thresholds) -> Outcome:
    """Return the verdict for the lowest cosine or norm ratio of two endpoints."""
    if similarity >= thresholds.verified:
        return "verified"
    return "near" if similarity >= thresholds.near else "different"


def compare_cosine(left: Array, right: Array) -> tuple[float, float]:
    """Compare two (n, d) arrays row by row.

    Returns the lowest cosine of two rows and the largest absolute difference of two components.
    """
    a = left.astype("f8")
    b = right.astype("f8")
    norms = ((a * a).sum(axis=1) * (b * b).sum(axis=1)) ** 0.5
    cosines = (a * b).sum(axis=1) / norms.clip(min=5e-324)
    return float(cosines.min()), float(abs(a - b).max())


def norm_ratio(left: Array, right: Array) -> float:
    """Return the lowest ratio of the norms of two rows, shorter to longer, of two (n, d) arrays."""
    a = left.astype("f8")
    b = right.astype("f8")
    ratios = ((a * a).sum(axis=1) / (b * b).sum(axis=1)) ** 0.5
    return float(min(ratios.min(), 1 / ratios.max()))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``verify``."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="default: every model with several endpoints"
    )
    parser.add_argument(
        "--verified",
        default=THRESHOLDS.verified,
        type=float,
        help="minimum cosine similarity for 'verified' (default: %(default)s)",
    )
    parser.add_argument(
        "--near",
        default=THRESHOLDS.near,
        type=float,
        help="minimum cosine similarity for 'near' (default: %(default)s)",
    )
    parser.epilog = (
        "Prints a row for each two endpoints of a model, PROVIDER:MODEL each: the lowest cosine "
        "and the largest difference of two numbers over a set of texts, the verdict, and a reason "
        "if the numbers do not show it. "
        "Exit status: 0 if all endpoints of each model give the same vectors, 1 if some are "
        f"'different' or the config has mistakes, {UNREACHABLE_STATUS} if none is 'different' "
        "but some are 'unreachable'."
    )


def run(options: argparse.Namespace) -> int:
    """Print a verdict for each pair of endpoints.

    Returns 1 if any pair is "different", else ``UNREACHABLE_STATUS`` if any is "unreachable".
    """
    gateway = make_gateway(options)
    thresholds = Thresholds(verified=options.verified, near=options.near)
    if options.model:
        names = [options.model]
    else:
        routes = gateway.models.routes.items()
        names = [name for name, route in routes if len(route.candidates) > 1]
    if not names:
        raise ConfigError(
            ["No model of this config has several endpoints, so there is nothing to compare."]
        )
    verdicts = [
        verdict for name in names for verdict in anyio.run(verify, gateway, name, thresholds)
    ]
    if not verdicts:
        raise ConfigError([f"{options.model} has one endpoint, so there is nothing to compare."])
    _print_verdicts(verdicts)
    outcomes = {verdict.verdict for verdict in verdicts}
    if "different" in outcomes:
        return 1
    return UNREACHABLE_STATUS if "unreachable" in outcomes else 0


def _print_verdicts(verdicts: Sequence[Verdict]) -> None:
    rows = [
        (
            verdict.model,
            verdict.left,
            verdict.right,
            verdict.shown_cosine,
            verdict.shown_difference,
            verdict.verdict,
            verdict.reason,
        )
        for verdict in verdicts
    ]
    print_table(
        ("MODEL", "ENDPOINT", "ENDPOINT", "MIN COSINE", "MAX DIFFERENCE", "VERDICT", "REASON"), rows
    )


COMMAND: Final = Command(
    name="verify",
    help="compare the vectors of all endpoints of a model",
    run=run,
    add_options=add_options,
)
