"""The table of workloads: what is asked, how many at once, of whom."""

import msgspec

BARE = ("bare-aiohttp", "bare-pyreqwest")
DECODING = ("bare-aiohttp-d", "bare-pyreqwest-d")
OURS = ("embedroute", "embedroute-httpx2")
RIVALS = ("litellm", "portkey")


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the plan.

    `model` names the upstream answer (see `upstreams.MODELS`), `base` the systems whose cheapest is 1.0 in the ratio
    column, `fixed` is how many of the inputs repeat from request to request (the others never do), `stretch`
    multiplies the seconds of a round, `beside` is a workload that runs at the same time and is not measured.
    """

    name: str
    title: str
    model: str
    inputs: int = 1
    encoding: str = "base64"
    at_once: int = 32
    fixed: int = 0
    systems: tuple[str, ...] = (*BARE, *DECODING, *OURS, *RIVALS)
    base: tuple[str, ...] = DECODING
    stretch: float = 1.0
    beside: str | None = None
    note: str = ""


WORKLOADS = (
    Workload(name="one-1", title="1 input, base64, 1 at a time", model="n1-base64", at_once=1),
    Workload(name="one-32", title="1 input, base64, 32 at once", model="n1-base64"),
    Workload(name="one-128", title="1 input, base64, 128 at once", model="n1-base64", at_once=128),
    Workload(
        name="one-float", title="1 input, float, 32 at once", model="n1-float", encoding="float"
    ),
    Workload(
        name="many",
        title="128 inputs, base64, 8 at once",
        model="n128-base64",
        inputs=128,
        at_once=8,
    ),
    Workload(
        name="bulk",
        title="2048 inputs of 1536, float, 2 at once",
        model="n2048-float",
        inputs=2048,
        encoding="float",
        at_once=2,
        systems=(*BARE, *DECODING, *OURS, "portkey"),
        base=BARE,
        stretch=2.0,
        note="embedroute asks its upstream for base64, the others get float text. LiteLLM is left out: no answer in 16 s.",
    ),
    Workload(
        name="hot",
        title="cache hot: 1 input, base64, 32 at once",
        model="n1-base64",
        fixed=1,
        systems=("static", "static-mounted", "embedroute-cache"),
        base=("static",),
        note="The static responders decode the same body and return one fixed answer of the same size.",
    ),
    Workload(
        name="half",
        title="cache with 50 % hits: 8 inputs, 4 of them known, base64, 32 at once",
        model="instant",
        inputs=8,
        fixed=4,
        systems=(*DECODING, "embedroute", "embedroute-cache"),
        note="The upstream answers any number of inputs without delay; the bare proxies ask for all 8.",
    ),
    Workload(
        name="micro-off",
        title="upstream of 5 ms a call + 0.1 ms an input, without micro-batching, 64 at once",
        model="gpu-alone",
        at_once=64,
        systems=("embedroute",),
        base=(),
    ),
    Workload(
        name="micro-on",
        title="the same upstream, micro_batch_ms = 2, 64 at once",
        model="gpu-merged",
        at_once=64,
        systems=("embedroute",),
        base=(),
        note="The upstream serves one call after another, as a GPU does.",
    ),
    Workload(
        name="small-idle",
        title="1 input, base64, 8 at once, nothing else running",
        model="n1-base64",
        at_once=8,
        systems=(*DECODING, *OURS),
        base=(),
        stretch=1.5,
    ),
    Workload(
        name="small-busy",
        title="1 input, base64, 8 at once, while two 2048-batches run",
        model="n1-base64",
        at_once=8,
        systems=(*DECODING, *OURS),
        base=(),
        stretch=1.5,
        beside="bulk",
        note="CPU and memory here hold the bulk requests too; p99 is what counts.",
    ),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}
