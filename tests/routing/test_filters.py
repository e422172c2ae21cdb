"""Parameters that change the vector are never dropped silently.

Endpoints that do not support them are excluded.
"""

import pytest

from embedroute.config import Model
from embedroute.errors import InvalidRequest, NoEligibleProvider
from embedroute.protocol import Limits, make_request
from embedroute.routing import Parameters, select_endpoints
from tests.routing.factories import SOMEONE, candidate, chosen, context_for, job, route

PLAIN = candidate("plain", 1)
SIZED = candidate("sized", 2, accepts={"dimensions": True})
TYPED = candidate("typed", 3, accepts={"input_types": ["query", "document"]})
GOOGLE = candidate(
    "google",
    4,
    accepts={"options": ["google"], "dimensions": True, "input_types": ["query", "document"]},
)
MISTRAL = candidate("mistral", 5, accepts={"options": ["mistral"], "dtypes": ["float", "int8"]})
VISUAL = candidate("visual", 6, accepts={"modalities": ["text", "image"], "fetches": True})
BLIND_FETCH = candidate("blind", 7, accepts={"modalities": ["text", "image"]})
TOKENS = candidate("tokens", 8, accepts={"tokens": True, "user": True})
MUTE = candidate("mute", 9, accepts={"texts": False, "tokens": True})


def parameters(fields, *candidates, **facts):
    return select_endpoints(
        route(*candidates, **facts), job(**fields), SOMEONE, context_for(candidates)
    ).parameters


def refused(fields, *candidates, preferences=None, **facts):
    with pytest.raises((InvalidRequest, NoEligibleProvider)) as error:
        chosen(candidates, facts=facts, fields=fields, **(preferences or {}))
    return error.value.status, error.value.param, error.value.code


MATRYOSHKA = {"dimensions": 1024, "matryoshka": True}
LISTED = {**MATRYOSHKA, "dimensions_allowed": [256, 512]}
NATIVE_ONLY = {"dimensions": 1024, "matryoshka": False, "dimensions_allowed": [256]}


@pytest.mark.parametrize(
    ("facts", "size", "names"),
    [
        ({"dimensions": 1024}, None, ["plain", "sized"]),
        ({"dimensions": 1024}, 0, ["plain", "sized"]),
        ({"dimensions": 1024}, 1024, ["plain", "sized"]),
        (MATRYOSHKA, 1, ["plain", "sized"]),
        (MATRYOSHKA, 1023, ["plain", "sized"]),
        (MATRYOSHKA, 1024, ["plain", "sized"]),
        (LISTED, 256, ["plain", "sized"]),
        (LISTED, None, ["plain", "sized"]),
        ({**LISTED, "dimensions_allowed": [256, 1024]}, 1024, ["plain", "sized"]),
        (NATIVE_ONLY, 1024, ["plain", "sized"]),
        ({**MATRYOSHKA, "dimensions_min": 32}, 32, ["plain", "sized"]),
        ({}, 77, ["sized"]),
        ({}, None, ["plain", "sized"]),
    ],
)
def test_a_width_is_requested_from_the_api_or_truncated(facts, size, names):
    """Only vectors of a matryoshka model can be truncated.

    The width of an undeclared model is not checked.
    """
    assert names == chosen([PLAIN, SIZED], facts=facts, fields={"dimensions": size})


@pytest.mark.parametrize(
    ("facts", "size"),
    [
        ({"dimensions": 1024}, 512),
        ({"dimensions": 1024}, 2048),
        ({"dimensions": 1024, "matryoshka": False}, 1023),
        (MATRYOSHKA, 1025),
        (LISTED, 128),
        (LISTED, 1025),
        (LISTED, 1024),
        (NATIVE_ONLY, 256),
        ({"dimensions": 1024, "dimensions_allowed": [256]}, 256),
        ({**MATRYOSHKA, "dimensions_min": 32}, 31),
        ({**MATRYOSHKA, "dimensions_min": 32}, 1025),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_width_that_the_model_does_not_have_is_rejected(facts, size, strict):
    """With any ``require_parameters``."""
    assert (400, "dimensions", None) == refused(
        {"dimensions": size}, PLAIN, SIZED, preferences={"require_parameters": strict}, **facts
    )


def test_a_width_that_no_endpoint_supports_is_rejected():
    assert (400, "dimensions", None) == refused({"dimensions": 77}, PLAIN)
    assert (400, "dimensions", None) == refused({"dimensions": 256}, PLAIN, **NATIVE_ONLY)


@pytest.mark.parametrize(
    ("facts", "size", "expected"),
    [
        ({"dimensions": 1024}, None, Parameters(width=1024)),
        ({"dimensions": 1024}, 1024, Parameters(width=1024)),
        (MATRYOSHKA, 256, Parameters(width=256, dimensions=256)),
        ({}, None, Parameters()),
        ({}, 77, Parameters(width=77, dimensions=77)),
    ],
)
def test_the_models_own_width_is_always_supported(facts, size, expected):
    """A client that always sends it shares vectors with one that never does, and upstreams do not receive it."""
    assert expected == parameters({"dimensions": size}, SIZED, **facts)


@pytest.mark.parametrize(
    ("facts", "wanted", "whole"),
    [
        (MATRYOSHKA, Parameters(width=256, dimensions=256), Parameters(width=1024)),
        (MATRYOSHKA, Parameters(width=1024), None),
        (MATRYOSHKA, Parameters(width=256, dimensions=256, dtype="int8"), None),
        (NATIVE_ONLY, Parameters(width=256, dimensions=256), None),
        ({}, Parameters(width=77, dimensions=77), None),
    ],
)
def test_only_float_vectors_of_a_matryoshka_model_can_be_truncated(facts, wanted, whole):
    assert whole == wanted.uncut(Model(**facts))


PREFIXED = {"prefixes": {"query": "query: ", "document": ""}}


@pytest.mark.parametrize(
    ("facts", "input_type", "names"),
    [
        ({}, None, ["plain", "typed"]),
        ({}, "query", ["typed"]),
        ({}, "search_query", ["typed"]),
        ({}, "RETRIEVAL_QUERY", ["typed"]),
        (PREFIXED, "query", ["plain", "typed"]),
        (PREFIXED, "passage", ["plain", "typed"]),
        ({"input_types": []}, "query", ["plain", "typed"]),
        ({"input_types": []}, "clustering", ["plain", "typed"]),
        ({"input_types": ["query"]}, "query", ["typed"]),
    ],
)
def test_an_input_type_is_passed_on_or_prefixed_or_has_no_effect(facts, input_type, names):
    """By the API, by the model's prefix, or with no effect for a model without input types."""
    assert names == chosen([PLAIN, TYPED], facts=facts, fields={"input_type": input_type})


@pytest.mark.parametrize(
    ("facts", "fields"),
    [
        ({}, {"input_type": "clustering"}),
        (PREFIXED, {"input_type": "clustering"}),
        (PREFIXED, {"input_type": "query", "input": [[1, 2]]}),
    ],
)
def test_an_input_type_that_no_endpoint_supports_is_rejected(facts, fields):
    """A prefix is text and cannot be added to token ids."""
    assert (400, "input_type", None) == refused(fields, PLAIN, TYPED, TOKENS, **facts)


def test_input_types_without_effect_share_cache_entries():
    same = [
        parameters({"input_type": item}, PLAIN, input_types=[])
        for item in (None, "query", "document")
    ]

    assert [Parameters()] * 3 == same


def google(**options):
    return {"embedding_options": {"google": options}}


def mistral(**options):
    return {"embedding_options": {"mistral": options}}


def both(google, mistral):
    return {"embedding_options": {"google": google, "mistral": mistral}}


BOTH = candidate(
    "both",
    10,
    accepts={
        "options": ["google", "mistral"],
        "dtypes": ["float", "int8"],
        "input_types": ["query"],
    },
)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            both({"task_type": "RETRIEVAL_QUERY"}, {"output_dtype": "int8"}),
            "embedding_options.mistral.output_dtype",
        ),
        (both({"title": "t"}, {"output_dtype": "int8"}), "embedding_options.mistral.output_dtype"),
        (
            both({"output_dimensionality": 4}, {"output_dimension": 8}),
            "embedding_options.mistral.output_dimension",
        ),
        (
            both({"title": "t"}, {"output_dimension": 2048}),
            "embedding_options.mistral.output_dimension",
        ),
    ],
)
def test_options_of_two_namespaces_that_no_endpoint_supports_together_are_named(fields, param):
    """Each namespace has an endpoint that supports it, but none supports both."""
    assert (400, param, None) == refused(fields, GOOGLE, MISTRAL, **MATRYOSHKA)


TITLE = "embedding_options.google.title"
TASK = "embedding_options.google.task_type"
WIDTH = "embedding_options.google.output_dimensionality"
SIZE = "embedding_options.mistral.output_dimension"
DTYPE = "embedding_options.mistral.output_dtype"


@pytest.mark.parametrize(
    ("fields", "candidates", "names", "lost"),
    [
        (google(title="t"), [PLAIN, GOOGLE, MISTRAL], ["google"], [TITLE]),
        (
            google(title="t", task_type="RETRIEVAL_DOCUMENT"),
            [PLAIN, GOOGLE, MISTRAL],
            ["google"],
            [],
        ),
        (google(title="t", task_type="RETRIEVAL_QUERY"), [GOOGLE], ["google"], [TITLE]),
        (google(title="t", task_type="TASK_TYPE_UNSPECIFIED"), [GOOGLE], ["google"], [TITLE]),
        (mistral(output_dtype="int8"), [PLAIN, GOOGLE, MISTRAL], ["mistral"], []),
        (google(title="t"), [PLAIN, MISTRAL], ["plain", "mistral"], [TITLE]),
        (google(), [PLAIN, GOOGLE], ["plain", "google"], []),
        (google(task_type="TASK_TYPE_UNSPECIFIED"), [PLAIN, GOOGLE], ["plain", "google"], []),
        (google(task_type="", title=""), [PLAIN, GOOGLE], ["plain", "google"], []),
        (mistral(output_dtype=""), [PLAIN, MISTRAL], ["plain", "mistral"], []),
        (google(task_type=None, title=None), [PLAIN, GOOGLE], ["plain", "google"], []),
        ({"embedding_options": {"google": None}}, [PLAIN, GOOGLE], ["plain", "google"], []),
        (
            {"embedding_options": {"google": {"title": "t"}, "mistral": {"output_dtype": "int8"}}},
            [PLAIN, MISTRAL],
            ["mistral"],
            [TITLE],
        ),
        (
            both({"task_type": "RETRIEVAL_QUERY"}, {"output_dimension": 256}),
            [PLAIN, GOOGLE, MISTRAL],
            ["google"],
            [],
        ),
        (
            both({"title": "t"}, {"output_dtype": "float"}),
            [PLAIN, GOOGLE],
            ["google"],
            [DTYPE, TITLE],
        ),
        (
            both({"title": "t"}, {"output_dtype": "int8"}),
            [GOOGLE, MISTRAL, BOTH],
            ["both"],
            [TITLE],
        ),
        # No candidate supports the namespace, but something else covers the value.
        ({"dimensions": 256, **google(output_dimensionality=256)}, [PLAIN], ["plain"], [WIDTH]),
        ({"dimensions": 256, **mistral(output_dimension=256)}, [GOOGLE], ["google"], [SIZE]),
        (google(output_dimensionality=1024), [PLAIN], ["plain"], [WIDTH]),
        (
            both({"output_dimensionality": 256}, {"output_dimension": 256}),
            [GOOGLE],
            ["google"],
            [SIZE],
        ),
        (mistral(output_dtype="float"), [PLAIN], ["plain"], [DTYPE]),
    ],
)
def test_namespaced_options_select_the_endpoints_that_support_them(fields, candidates, names, lost):
    """If a candidate supports it, the others are excluded.

    If none does, an option is dropped and traced if it changes nothing.
    """
    found = select_endpoints(
        route(*candidates, **MATRYOSHKA), job(**fields), SOMEONE, context_for(candidates)
    )

    lost_names = [option.name for option in found.ignored_options]
    assert (names, lost) == ([item.provider for item in found.candidates], lost_names)


@pytest.mark.parametrize(
    ("fields", "candidates", "param"),
    [
        (google(output_dimensionality=256), [PLAIN, MISTRAL], WIDTH),
        (mistral(output_dimension=256), [PLAIN, GOOGLE], SIZE),
        (mistral(output_dtype="int8"), [PLAIN, GOOGLE], DTYPE),
        ({"dimensions": 256, **mistral(output_dtype="int8")}, [PLAIN, GOOGLE], DTYPE),
        (google(task_type="CLUSTERING"), [PLAIN, MISTRAL], TASK),
        (both({"title": "t"}, {"output_dtype": "int8"}), [GOOGLE], DTYPE),
    ],
)
def test_an_option_that_no_endpoint_supports_is_named_if_it_changes_the_vector(
    fields, candidates, param
):
    assert (400, param, None) == refused(fields, *candidates, **MATRYOSHKA)


def test_a_task_of_an_unsupported_namespace_is_dropped_for_a_symmetric_model():
    found = select_endpoints(
        route(PLAIN, **MATRYOSHKA, input_types=[]),
        job(**google(task_type="CLUSTERING")),
        SOMEONE,
        context_for([PLAIN]),
    )

    assert [TASK] == [option.name for option in found.ignored_options]


@pytest.mark.parametrize(
    ("fields", "candidate", "param", "other"),
    [
        ({"dimensions": 8, **google(output_dimensionality=9)}, GOOGLE, WIDTH, "dimensions"),
        ({"dimensions": 8, **mistral(output_dimension=9)}, MISTRAL, SIZE, "dimensions"),
        ({"input_type": "query", **google(task_type="CLUSTERING")}, GOOGLE, TASK, "input_type"),
        (both({"output_dimensionality": 8}, {"output_dimension": 9}), BOTH, SIZE, WIDTH),
        # No candidate supports the namespace.
        ({"input_type": "query", **google(task_type="CLUSTERING")}, TYPED, TASK, "input_type"),
        ({"dimensions": 256, **google(output_dimensionality=2)}, PLAIN, WIDTH, "dimensions"),
        ({"dimensions": 256, **mistral(output_dimension=2)}, GOOGLE, SIZE, "dimensions"),
        (both({"output_dimensionality": 256}, {"output_dimension": 2}), GOOGLE, SIZE, WIDTH),
    ],
)
def test_a_contradiction_is_refused_and_names_both_fields(fields, candidate, param, other):
    """Also if an option would have no effect: the request is wrong in any case."""
    with pytest.raises(InvalidRequest, match=f"^'{param}' contradicts '{other}'") as caught:
        select_endpoints(
            route(candidate, **MATRYOSHKA), job(**fields), SOMEONE, context_for([candidate])
        )

    assert param == caught.value.param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (google(title="t"), "embedding_options.google"),
        (mistral(output_dtype="float"), "embedding_options.mistral"),
        (
            {"embedding_options": {"google": {"title": "t"}, "mistral": {"output_dtype": "int8"}}},
            "embedding_options.google",
        ),
        ({"dimensions": 256, **mistral(output_dimension=256)}, "embedding_options.mistral"),
    ],
)
def test_require_parameters_rejects_a_namespace_that_no_endpoint_supports(fields, param):
    candidates = [PLAIN, MISTRAL] if "google" in fields["embedding_options"] else [PLAIN, GOOGLE]

    assert (400, param, None) == refused(
        fields, *candidates, preferences={"require_parameters": True}
    )


def test_require_parameters_rejects_a_title_without_the_task_for_documents():
    refusal = refused(google(title="t"), GOOGLE, preferences={"require_parameters": True})

    assert (400, TITLE, None) == refusal


@pytest.mark.parametrize(
    ("fields", "candidate", "expected"),
    [
        (
            google(output_dimensionality=256),
            GOOGLE,
            Parameters(width=256, dimensions=256),
        ),
        (
            google(task_type="RETRIEVAL_QUERY"),
            GOOGLE,
            Parameters(width=1024, input_type="query"),
        ),
        (google(title="t"), GOOGLE, Parameters(width=1024)),
        (
            {"input_type": "document", **google(title="t")},
            GOOGLE,
            Parameters(width=1024, title="t", input_type="document"),
        ),
        (
            mistral(output_dimension=256.0),
            MISTRAL,
            Parameters(width=256, dimensions=256),
        ),
        (
            mistral(output_dtype="int8"),
            MISTRAL,
            Parameters(width=1024, dtype="int8"),
        ),
        (
            both(
                {"task_type": "RETRIEVAL_QUERY"}, {"output_dimension": 256, "output_dtype": "float"}
            ),
            BOTH,
            Parameters(width=256, dimensions=256, input_type="query"),
        ),
        (
            {"dimensions": 256, **google(title="t")},
            GOOGLE,
            Parameters(width=256, dimensions=256),
        ),
    ],
)
def test_namespaced_options_become_neutral_parameters(fields, candidate, expected):
    assert expected == parameters(fields, candidate, **MATRYOSHKA)


@pytest.mark.parametrize(
    ("fields", "speaker", "param"),
    [
        (
            google(output_dimensionality=2048),
            GOOGLE,
            "embedding_options.google.output_dimensionality",
        ),
        (mistral(output_dimension=2048), MISTRAL, "embedding_options.mistral.output_dimension"),
        ({"dimensions": 2048, **google(title="t")}, GOOGLE, "dimensions"),
        (mistral(output_dtype="ubinary"), MISTRAL, "embedding_options.mistral.output_dtype"),
        (google(task_type="CLUSTERING"), GOOGLE, "embedding_options.google.task_type"),
    ],
)
def test_an_unsupported_namespaced_option_is_named_in_the_error(fields, speaker, param):
    assert (400, param, None) == refused(fields, speaker, **MATRYOSHKA)


def test_quantised_vectors_are_not_truncated():
    fields = mistral(output_dtype="int8", output_dimension=256)

    assert (400, SIZE, None) == refused(fields, MISTRAL, **MATRYOSHKA)


def parts(*parts):
    return {"input": [{"content": list(parts)}]}


TEXT_PART = {"type": "text", "text": "t"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}}
EVERY = [PLAIN, VISUAL, BLIND_FETCH, TOKENS, MUTE]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"input": "t"}, ["plain", "visual", "blind", "tokens"]),
        ({"input": ["t", "u"]}, ["plain", "visual", "blind", "tokens"]),
        ({"input": [1, 2]}, ["tokens", "mute"]),
        ({"input": [[1, 2], [3]]}, ["tokens", "mute"]),
        (parts(TEXT_PART), ["visual", "blind"]),
        (parts(TEXT_PART, IMAGE), ["visual", "blind"]),
        (parts(IMAGE), ["visual", "blind"]),
    ],
)
def test_an_input_goes_to_endpoints_that_accept_its_kind(fields, names):
    """Only multimodal APIs accept content parts; a text API does not accept even text parts."""
    assert names == chosen(EVERY, fields=fields, facts={"modalities": ["text", "image"]})


@pytest.mark.parametrize(
    ("fields", "candidates", "facts"),
    [
        ({"input": [1]}, [PLAIN, VISUAL], {}),
        (parts(IMAGE), [PLAIN, TOKENS], {}),
        (parts(IMAGE), EVERY, {}),
        (parts(TEXT_PART, IMAGE), EVERY, {}),
        (parts(IMAGE), EVERY, {"modalities": []}),
        (parts(IMAGE), [PLAIN, TOKENS], {"modalities": ["text", "image"]}),
        (parts(TEXT_PART), [PLAIN, TOKENS], {}),
        (parts(IMAGE), EVERY, {"modalities": ["text"]}),
        (parts(TEXT_PART), EVERY, {"modalities": ["image"]}),
        ({"input": "t"}, EVERY, {"modalities": ["image"]}),
        ({"input": [1]}, EVERY, {"modalities": ["image"]}),
        ({"input": "t"}, [MUTE], {}),
    ],
)
def test_a_kind_of_input_that_no_endpoint_accepts_is_rejected(fields, candidates, facts):
    assert (400, "input", "unsupported_modality") == refused(fields, *candidates, **facts)


@pytest.mark.parametrize("scheme", ["https", "HTTPS", "Https"])
def test_an_https_image_goes_to_endpoints_that_fetch_urls(scheme):
    limits = Limits(media_domains=frozenset({"example.com"}))
    image = {"type": "image_url", "image_url": {"url": f"{scheme}://example.com/a.png"}}
    request = make_request({"model": "m", "input": [{"content": [TEXT_PART, image]}]}, limits)

    found = select_endpoints(
        route(*EVERY, modalities=["text", "image"]), request, SOMEONE, context_for(EVERY)
    )

    assert ["visual"] == [item.provider for item in found.candidates]
    with pytest.raises(InvalidRequest) as error:
        select_endpoints(
            route(BLIND_FETCH, modalities=["text", "image"]),
            request,
            SOMEONE,
            context_for([BLIND_FETCH]),
        )
    assert (400, "input", "unsupported_modality") == (
        error.value.status,
        error.value.param,
        error.value.code,
    )


@pytest.mark.parametrize(
    ("input", "param"),
    [
        ([1, 2, 3, 4], "input"),
        ([[1, 2, 3, 4]], "input"),
        ([[1], [1, 2, 3], [1, 2, 3, 4]], "input[2]"),
        ([[1] * 9, [1] * 8], "input[0]"),
    ],
)
def test_token_ids_over_the_models_context_are_rejected(input, param):
    """Token ids are counted exactly.

    The length of a text is checked by the upstream, which knows its tokenizer.
    """
    assert (400, param, "context_length_exceeded") == refused(
        {"input": input}, TOKENS, max_input_tokens=3
    )


@pytest.mark.parametrize(
    ("input", "facts"),
    [
        ([1, 2, 3], {"max_input_tokens": 3}),
        ([1] * 9999, {}),
        ("t" * 9999, {"max_input_tokens": 3}),
        ([[1, 2, 3]] * 9, {"max_input_tokens": 3}),
    ],
)
def test_inputs_within_the_context_pass(input, facts):
    assert ["tokens"] == chosen([TOKENS], fields={"input": input}, facts=facts)


@pytest.mark.parametrize(
    ("strict", "user", "names"),
    [(True, "u", ["tokens"]), (False, "u", ["plain", "tokens"]), (True, None, ["plain", "tokens"])],
)
def test_require_parameters_applies_to_user(strict, user, names):
    assert names == chosen([PLAIN, TOKENS], fields={"user": user}, require_parameters=strict)


def test_require_parameters_without_a_matching_endpoint_is_an_error():
    assert (404, "provider", "no_eligible_provider") == refused(
        {"user": "u"}, PLAIN, SIZED, preferences={"require_parameters": True}
    )


def test_preferences_are_applied_before_parameters():
    """A filter's 404 comes before a parameter's 400."""
    assert 404 == refused({"dimensions": 5}, PLAIN, preferences={"zdr": True}, dimensions=4)[0]
