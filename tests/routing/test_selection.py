"""Which endpoints may serve a request.

Each filter as a table, and no preference ever adds endpoints.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedroute.auth import Caller
from embedroute.errors import InvalidRequest, NoEligibleProvider, RequestError
from embedroute.routing import select_endpoints
from embedroute.trace import RequestTrace
from tests.routing.factories import SOMEONE, candidate, chosen, context_for, job, route

OPENAI = candidate("openai", 2, vendor="OpenAI")
AZURE = candidate("azure", 1, vendor="Azure")
EAST = candidate("google-vertex/us-east5", 3, vendor="Google")
WEST = candidate("google-vertex/us-west1", 4, vendor="Google")
HF = candidate("hf.co_x", 5, vendor="Hugging Face")
ALL = [OPENAI, AZURE, EAST, WEST, HF]
NAMES = [item.provider for item in ALL]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("openai", ["openai"]),
        ("OpenAI", ["openai"]),
        (" OPENAI ", ["openai"]),
        ("google-vertex", ["google-vertex/us-east5", "google-vertex/us-west1"]),
        ("Google Vertex", ["google-vertex/us-east5", "google-vertex/us-west1"]),
        ("google_vertex", ["google-vertex/us-east5", "google-vertex/us-west1"]),
        ("google . _vertex", ["google-vertex/us-east5", "google-vertex/us-west1"]),
        ("google", ["google-vertex/us-east5", "google-vertex/us-west1"]),
        ("google-vertex/us-east5", ["google-vertex/us-east5"]),
        ("Google.Vertex/US East5", ["google-vertex/us-east5"]),
        ("hugging face", ["hf.co_x"]),
        ("Hugging_Face", ["hf.co_x"]),
        ("HF-CO-X", ["hf.co_x"]),
        ("hf.co.x", ["hf.co_x"]),
        ("deepinfra", []),
        ("deepinfra/turbo", []),
        ("openai/fast", []),
    ],
)
def test_a_provider_name_matches_a_slug_its_base_or_a_vendor(name, meant):
    """In all three lists, ignoring case and punctuation; other endpoints are not affected."""
    assert [item for item in NAMES if item not in meant] == sorted(
        chosen(ALL, ignore=[name]), key=NAMES.index
    )
    if meant:
        assert meant == sorted(chosen(ALL, only=[name]), key=NAMES.index)
    assert meant == chosen(ALL, order=[name])[: len(meant)]


@pytest.mark.parametrize("field", ["order", "only", "ignore"])
@pytest.mark.parametrize(
    "name",
    ["opnai", "", "/", "openia/eu", "google-vertex/us-east6", "open ai", "\uff4fpenai", "openai/"],
)
def test_an_unknown_provider_is_rejected_in_every_list(field, name):
    """A typo in ``ignore`` would send text to the provider that it should exclude."""
    with pytest.raises(InvalidRequest) as refused:
        chosen(ALL, **{field: ["azure", name]})

    assert (400, f"provider.{field}") == (refused.value.status, refused.value.param)


@pytest.mark.parametrize(
    ("request_", "key", "gateway", "left"),
    [
        ({}, {}, {}, ["openai", "azure", "hf.co_x"]),
        ({"only": ["openai", "azure"]}, {}, {}, ["openai", "azure"]),
        ({}, {"only": ("openai", "azure")}, {}, ["openai", "azure"]),
        ({}, {}, {"only": ["openai", "azure"]}, ["openai", "azure"]),
        ({"only": ["openai", "azure"]}, {"only": ("azure", "hf.co_x")}, {}, ["azure"]),
        (
            {"only": ["openai", "azure"]},
            {"only": ("azure",)},
            {"only": ["azure", "openai"]},
            ["azure"],
        ),
        ({"ignore": ["openai"]}, {}, {}, ["azure", "hf.co_x"]),
        ({"ignore": ["openai"]}, {"ignore": ("azure",)}, {}, ["hf.co_x"]),
        ({}, {"ignore": ("azure",)}, {"ignore": ["hf.co_x"]}, ["openai"]),
        ({"only": ["openai", "azure"], "ignore": ["openai"]}, {}, {}, ["azure"]),
        ({"only": ["openai", "azure"]}, {}, {"ignore": ["openai"]}, ["azure"]),
        ({"ignore": []}, {"only": ()}, {"only": []}, ["openai", "azure", "hf.co_x"]),
        ({"only": None, "ignore": None}, {}, {}, ["openai", "azure", "hf.co_x"]),
    ],
)
def test_lists_of_request_key_and_gateway_all_apply(request_, key, gateway, left):
    """``only`` lists intersect and ``ignore`` lists add up.

    Callers can narrow the operator's choice but not widen it.
    """
    some = [OPENAI, AZURE, HF]

    names = chosen(
        some, caller=Caller(name="k", **key), context=context_for(some, **gateway), **request_
    )

    assert left == sorted(names, key=NAMES.index)


@pytest.mark.parametrize(
    ("preferences", "filter"),
    [
        ({"only": []}, "only"),
        ({"only": ["deepinfra"]}, "only"),
        ({"only": ["openai"], "ignore": ["OpenAI"]}, "ignore"),
        ({"ignore": ["openai", "azure"]}, "ignore"),
        ({"order": [], "allow_fallbacks": False}, "order"),
        ({"order": ["deepinfra"], "allow_fallbacks": False}, "order"),
        ({"data_collection": "deny"}, "data_collection"),
        ({"zdr": True}, "zdr"),
        ({"enforce_distillable_text": True}, "enforce_distillable_text"),
        ({"quantizations": ["fp4"]}, "quantizations"),
        ({"max_price": {"prompt": 0.5}}, "max_price"),
    ],
)
def test_the_filter_that_excludes_the_last_endpoint_is_named(preferences, filter):
    """A 404 with the filter's name; never a fallback to all candidates."""
    with pytest.raises(NoEligibleProvider, match=f"'{filter}'") as refused:
        chosen([OPENAI, AZURE], **preferences)

    assert (404, "no_eligible_provider") == (refused.value.status, refused.value.code)


@pytest.mark.parametrize(
    "preferences",
    [
        {},
        {"ignore": []},
        {"order": []},
        {"quantizations": []},
        {"max_price": {}},
        {"preferred_max_latency": {}},
        {"preferred_min_throughput": {}},
        {"sort": {}},
        {"sort": {"partition": "none"}},
        {"data_collection": "allow"},
        {"zdr": False},
        {"enforce_distillable_text": False},
        {"require_parameters": False},
        {"allow_fallbacks": True},
        {"include_alpha": True},
        dict.fromkeys(
            (
                "order",
                "only",
                "ignore",
                "sort",
                "max_price",
                "zdr",
                "quantizations",
                "allow_fallbacks",
            )
        ),
        {"max_price": {"prompt": None, "image": None}},
    ],
)
def test_empty_preferences_change_nothing(preferences):
    unwished = select_endpoints(route(*ALL), job(), SOMEONE, context_for(ALL))

    found = select_endpoints(route(*ALL), job(provider=preferences), SOMEONE, context_for(ALL))

    assert [item.name for item in unwished.candidates] == [item.name for item in found.candidates]
    assert [] == found.dropped


@pytest.mark.parametrize(
    ("preference", "facts", "kept"),
    [
        ({"data_collection": "deny"}, {"data_collection": "deny"}, True),
        ({"data_collection": "deny"}, {"data_collection": "allow"}, False),
        ({"data_collection": "deny"}, {"data_collection": None}, False),
        ({"data_collection": "allow"}, {"data_collection": None}, True),
        ({"zdr": True}, {"zdr": True}, True),
        ({"zdr": True}, {"zdr": False}, False),
        ({"zdr": True}, {"zdr": None}, False),
        ({"enforce_distillable_text": True}, {"distillable": True}, True),
        ({"enforce_distillable_text": True}, {"distillable": False}, False),
        ({"enforce_distillable_text": True}, {"distillable": None}, False),
        ({"quantizations": ["fp16", "bf16"]}, {"quantization": "bf16"}, True),
        ({"quantizations": ["fp16", "bf16"]}, {"quantization": "int8"}, False),
        ({"quantizations": ["fp16"]}, {}, False),
        ({"quantizations": ["unknown"]}, {}, True),
        ({}, {"stage": "alpha"}, False),
        ({"include_alpha": False}, {"stage": "alpha"}, False),
        ({"include_alpha": True}, {"stage": "alpha"}, True),
        ({}, {"stage": "beta"}, True),
    ],
)
def test_policies_exclude_endpoints_with_unknown_facts(preference, facts, kept):
    """Facts that the operator did not declare cannot satisfy a privacy preference."""
    best = {"data_collection": "deny", "zdr": True, "distillable": True}
    other = candidate("other", quantization=preference.get("quantizations", ["unknown"])[0], **best)

    names = chosen([candidate("it", **facts), other], **preference)

    assert kept == ("it" in names)
    assert "other" in names


@pytest.mark.parametrize(
    ("prices", "caps", "kept"),
    [
        ({"prompt": "0.02"}, {"prompt": 0.02}, True),
        ({"prompt": "0.02"}, {"prompt": "0.02"}, True),
        ({"prompt": "0.020"}, {"prompt": "0.02"}, True),
        ({"prompt": "0.02"}, {"prompt": "0.019999999999999999"}, False),
        ({"prompt": "0.3"}, {"prompt": 0.3}, True),
        ({"prompt": "0.30000000000000004"}, {"prompt": 0.3}, False),
        ({"prompt": "1"}, {"prompt": 1}, True),
        ({"prompt": "0"}, {"prompt": 0}, True),
        ({"prompt": "0.000001"}, {"prompt": 0}, False),
        ({}, {"prompt": 1000}, False),
        ({}, {"image": 1000}, False),
        ({"image": "1"}, {"image": 1000}, False),
        ({"prompt": "1"}, {"image": 0}, True),
        ({"prompt": "1"}, {"completion": "0"}, True),
        ({"prompt": "1", "image": "0.5"}, {"image": "0.4"}, False),
        ({"prompt": "1", "image": "0.5"}, {"image": "0.5", "prompt": 2}, True),
        ({"prompt": "1", "request": "0.5"}, {"prompt": 2, "request": 0.1}, False),
        ({"prompt": "1", "audio": "2"}, {"audio": 1}, False),
    ],
)
def test_max_price_is_an_exact_limit(prices, caps, kept):
    free = candidate("free", 0)

    names = chosen([candidate("it", prices), free], max_price=caps)

    assert kept == ("it" in names)


def test_the_first_failing_filter_is_the_reason_and_the_trace_lists_all():
    trace = RequestTrace("r")
    trace.open(trace=True, sent=False, received=False, full=True)
    some = [OPENAI, AZURE, candidate("new", stage="alpha")]
    found = select_endpoints(
        route(*some), job(provider={"ignore": ["azure"]}), SOMEONE, context_for(some)
    )

    found.write_to_trace(trace)

    assert [("azure", "ignore"), ("new", "include_alpha")] == [
        (item.candidate.provider, item.filter) for item in found.dropped
    ]
    assert ["filtered", "filtered", "ordered"] == [event["action"] for event in trace.events or ()]


@pytest.mark.parametrize(
    ("facts", "fields", "preferences", "filtered"),
    [
        ({}, {}, {"zdr": True}, [("openai", "zdr"), ("azure", "zdr")]),
        ({}, {}, {"ignore": ["azure"], "zdr": True}, [("azure", "ignore"), ("openai", "zdr")]),
        ({}, {"input": [1]}, {"ignore": ["azure"]}, [("azure", "ignore"), ("openai", "input")]),
        ({"dimensions": 8}, {"dimensions": 4}, {"only": ["azure"]}, [("openai", "only")]),
        ({}, {}, {"only": ["absent"]}, []),
    ],
)
def test_a_trace_lists_the_filters_of_a_rejected_request(facts, fields, preferences, filtered):
    """They matter most when no endpoint remains."""
    trace = RequestTrace("r")
    trace.open(trace=True, sent=False, received=False, full=True)
    some = [OPENAI, AZURE]
    with pytest.raises(RequestError):
        select_endpoints(
            route(*some, **facts),
            job(**fields, provider=preferences),
            SOMEONE,
            context_for(some),
            trace,
        )

    assert filtered == [
        (event["endpoint"].partition(":")[0], event["filter"]) for event in trace.events or ()
    ]


TAKER = candidate("taker", accepts={"user": True})


@pytest.mark.parametrize(
    ("some", "user", "deaf"),
    [
        ([OPENAI, TAKER], "u", ["openai"]),
        ([OPENAI, AZURE], "u", ["azure", "openai"]),
        ([TAKER], "u", []),
        ([OPENAI, TAKER], None, []),
    ],
)
def test_a_trace_lists_the_endpoints_that_do_not_accept_user(some, user, deaf):
    trace = RequestTrace("r")
    trace.open(trace=True, sent=False, received=False, full=True)

    select_endpoints(route(*some), job(user=user), SOMEONE, context_for(some)).write_to_trace(
        trace, user
    )

    dropped = [event for event in trace.events or () if event["action"] == "dropped parameter"]
    assert deaf == sorted(
        event["endpoint"].partition(":")[0] for event in dropped if event["parameter"] == "user"
    )


def test_no_trace_is_written_unless_requested():
    trace = RequestTrace("r")

    select_endpoints(route(OPENAI), job(), SOMEONE, context_for([OPENAI])).write_to_trace(trace)

    assert trace.events is None


WISHES = st.fixed_dictionaries(
    {},
    optional={
        "order": st.lists(
            st.sampled_from(["openai", "azure", "google-vertex", "deepinfra", "Hugging Face"]),
            unique=True,
        ),
        "only": st.lists(
            st.sampled_from(["openai", "Azure", "google", "google-vertex/us-east5"]), unique=True
        ),
        "ignore": st.lists(
            st.sampled_from(["openai", "azure", "google-vertex/us-west1"]), unique=True
        ),
        "allow_fallbacks": st.booleans(),
        "data_collection": st.sampled_from(["allow", "deny"]),
        "zdr": st.booleans(),
        "quantizations": st.lists(st.sampled_from(["fp16", "int8", "unknown"])),
        "sort": st.sampled_from(
            ["price", "latency", "throughput", "exacto", {"by": "price", "partition": "none"}]
        ),
        "max_price": st.fixed_dictionaries({}, optional={"prompt": st.integers(0, 6)}),
        "preferred_max_latency": st.floats(0, 3),
        "include_alpha": st.booleans(),
    },
)
FACTS = st.fixed_dictionaries(
    {
        "data_collection": st.sampled_from([None, "allow", "deny"]),
        "zdr": st.sampled_from([None, True, False]),
        "quantization": st.sampled_from(["unknown", "fp16", "int8"]),
        "stage": st.sampled_from(["stable", "beta", "alpha"]),
    }
)


@given(
    preferences=WISHES,
    facts=st.lists(FACTS, min_size=5, max_size=5),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_no_preference_ever_adds_endpoints(preferences, facts, chance):
    """Every subset of a set of preferences selects at least the endpoints of the whole set, each once."""
    prices = [1, 2, None, 0, 5]
    some = [
        candidate(name, price, vendor=vendor, **fact)
        for (name, vendor), price, fact in zip(
            [(item.provider, item.vendor) for item in ALL], prices, facts, strict=True
        )
    ]

    def offered(preferences):
        try:
            return chosen(some, context=context_for(some, random=lambda: chance), **preferences)
        except NoEligibleProvider:
            return []

    names = offered(preferences)

    assert len(set(names)) == len(names)
    for name, preference in preferences.items():
        fewer = {field: value for field, value in preferences.items() if field != name}
        # Left to itself, allow_fallbacks false offers one pick, which another wish may well move
        # elsewhere.
        if preferences.get("allow_fallbacks") is not False and name != "include_alpha":
            assert set(names) <= set(offered(fewer)), (name, preference)
    for field, banned in (("ignore", True), ("only", False)):
        if field in preferences:
            named = {
                item.provider
                for item in some
                if any(item.named(name) for name in preferences[field])
            }
            assert not (set(names) & named if banned else set(names) - named)
