"""The ``provider`` object: how a client words its routing preferences (OpenRouter's and Phaseo's documents)."""

from decimal import Decimal
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

LONGEST_NAME: Final = 512
"""Characters that a name may have: of a model, a provider, a user, a title or an input type."""
MOST_NAMES: Final = 64
"""Names that a list may hold."""

Name = Annotated[str, Meta(max_length=LONGEST_NAME)]
Names = Annotated[list[Name], Meta(max_length=MOST_NAMES)]
Amount = (
    Annotated[int, Meta(ge=0)] | Annotated[float, Meta(ge=0)] | Annotated[str, Meta(pattern=r"\A[0-9]{1,18}(\.[0-9]{1,18})?\Z")]
)
Cutoff = Annotated[int, Meta(ge=0)] | Annotated[float, Meta(ge=0)]
SortKey = Literal["price", "throughput", "latency", "exacto"]
Quantization = Literal["int4", "int8", "fp4", "fp6", "fp8", "fp16", "bf16", "fp32", "unknown"]


class Percentiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cut-offs at percentiles, in seconds or tokens a second; every given one must hold."""

    p50: Cutoff | None = None
    p75: Cutoff | None = None
    p90: Cutoff | None = None
    p99: Cutoff | None = None

    def given(self) -> dict[int, float]:
        """Percentile → cut-off, of those that are set."""
        return {int(name[1:]): value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}


class MaxPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hard caps: ``prompt`` and ``completion`` in USD per million tokens, the others in USD per unit."""

    prompt: Amount | None = None
    completion: Amount | None = None
    request: Amount | None = None
    image: Amount | None = None
    audio: Amount | None = None

    def given(self) -> dict[str, Decimal]:
        """Kind → cap, of those that are set; a JSON number counts as its shortest decimal text."""
        return {name: Decimal(str(value)) for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}


class Sort(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The long form of ``sort``."""

    by: SortKey | None = None
    partition: Literal["model", "none"] | None = None


class Preferences(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which providers may serve a request, and in what order; every field is optional."""

    order: Names | None = None
    only: Names | None = None
    ignore: Names | None = None
    allow_fallbacks: bool | None = None
    require_parameters: bool | None = None
    data_collection: Literal["allow", "deny"] | None = None
    zdr: bool | None = None
    enforce_distillable_text: bool | None = None
    quantizations: Annotated[list[Quantization], Meta(max_length=MOST_NAMES)] | None = None
    sort: SortKey | Sort | None = None
    max_price: MaxPrice | None = None
    preferred_max_latency: Cutoff | Percentiles | None = None
    preferred_min_throughput: Cutoff | Percentiles | None = None
    include_alpha: bool | None = None

    def sort_key(self) -> SortKey | None:
        """What to sort by, in either form."""
        return self.sort.by if isinstance(self.sort, Sort) else self.sort


NO_PREFERENCES: Final = Preferences()


def cutoffs(wish: float | Percentiles | None) -> dict[int, float]:
    """Percentile → cut-off; a bare number means the median."""
    if wish is None:
        return {}
    return wish.given() if isinstance(wish, Percentiles) else {50: wish}
