"""Tests of the ``provider`` object: each field with valid and invalid values."""

from decimal import Decimal

import pytest

from embedroute.errors import InvalidRequest
from embedroute.protocol import (
    Limits,
    MaxPrice,
    Percentiles,
    Preferences,
    Sort,
    cutoffs,
    decode_request,
)


def read(preferences):
    body = '{"model":"m","input":"a","provider":{' + preferences + "}}"
    return decode_request(body.encode(), Limits()).preferences


def refusal(preferences):
    with pytest.raises(InvalidRequest) as caught:
        read(preferences)
    return caught.value.param, caught.value.message


LISTS = ("order", "only", "ignore")
FLAGS = (
    "allow_fallbacks",
    "require_parameters",
    "zdr",
    "enforce_distillable_text",
    "include_alpha",
)
SPEEDS = ("preferred_max_latency", "preferred_min_throughput")
KINDS = ("prompt", "completion", "request", "image", "audio")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((f'"{field}":[]', {field: []}) for field in LISTS),
        *((f'"{field}":["OpenAI","azure/eu"]', {field: ["OpenAI", "azure/eu"]}) for field in LISTS),
        *(
            (f'"{field}":{str(flag).lower()}', {field: flag})
            for field in FLAGS
            for flag in (True, False)
        ),
        *((f'"{field}":0', {field: 0}) for field in SPEEDS),
        *((f'"{field}":1.5', {field: 1.5}) for field in SPEEDS),
        *((f'"{field}":{{}}', {field: Percentiles()}) for field in SPEEDS),
        *(
            (f'"{field}":{{"p50":1,"p75":null,"p90":2.5}}', {field: Percentiles(p50=1, p90=2.5)})
            for field in SPEEDS
        ),
        ('"data_collection":"allow"', {"data_collection": "allow"}),
        ('"quantizations":["int4","bf16"]', {"quantizations": ["int4", "bf16"]}),
        ('"sort":"throughput"', {"sort": "throughput"}),
        ('"sort":{}', {"sort": Sort()}),
        ('"sort":{"by":"latency","partition":"model"}', {"sort": Sort("latency", "model")}),
        ('"max_price":{}', {"max_price": MaxPrice()}),
        *((f'"max_price":{{"{kind}":0}}', {"max_price": MaxPrice(**{kind: 0})}) for kind in KINDS),
        (
            '"max_price":{"prompt":"0.1","completion":2.5}',
            {"max_price": MaxPrice(prompt="0.1", completion=2.5)},
        ),
    ],
)
def test_decodes_valid_preferences(value, expected):
    assert Preferences(**expected) == read(value)


NAMES = ",".join(f'"p{at}"' for at in range(65))


@pytest.mark.parametrize(
    ("value", "param", "message"),
    [
        *((f'"{field}":"a"', field, "must be an array, not a string.") for field in LISTS),
        *(
            (f'"{field}":["a",1]', f"{field}[1]", "must be a string, not an integer.")
            for field in LISTS
        ),
        *((f'"{field}":[null]', f"{field}[0]", "must be a string, not null.") for field in LISTS),
        *((f'"{field}":[{NAMES}]', field, "must be at most 64 items long.") for field in LISTS),
        *((f'"{field}":["a","b","a"]', field, "names a provider twice.") for field in LISTS),
        *((f'"{field}":"false"', field, "must be true or false, not a string.") for field in FLAGS),
        *((f'"{field}":0', field, "must be true or false, not an integer.") for field in FLAGS),
        *(
            (f'"{field}":true', field, "must be a number or an object, not true or false.")
            for field in SPEEDS
        ),
        *(
            (f'"{field}":"1s"', field, "must be a number or an object, not a string.")
            for field in SPEEDS
        ),
        *((f'"{field}":-1', field, "must be at least 0.") for field in SPEEDS),
        *((f'"{field}":-0.5', field, "must be at least 0.") for field in SPEEDS),
        *((f'"{field}":{{"p99":-1}}', f"{field}.p99", "must be at least 0.") for field in SPEEDS),
        *(
            (f'"{field}":{{"p99":true}}', f"{field}.p99", "must be a number, not true or false.")
            for field in SPEEDS
        ),
        ('"data_collection":"maybe"', "data_collection", "must be one of allow, deny."),
        ('"data_collection":false', "data_collection", "must be a string, not true or false."),
        ('"quantizations":"int8"', "quantizations", "must be an array, not a string."),
        (
            '"quantizations":["int8","int7"]',
            "quantizations[1]",
            "must be one of int4, int8, fp4, fp6, fp8, fp16, bf16, fp32, unknown.",
        ),
        ('"sort":""', "sort", "must be one of price, throughput, latency, exacto."),
        ('"sort":["price"]', "sort", "must be a string or an object, not an array."),
        ('"sort":{"by":"x"}', "sort.by", "must be one of price, throughput, latency, exacto."),
        ('"sort":{"partition":"x"}', "sort.partition", "must be one of model, none."),
        ('"max_price":5', "max_price", "must be an object, not an integer."),
        (
            '"max_price":{"prompt":true}',
            "max_price.prompt",
            "must be a number or a string, not true or false.",
        ),
        ('"max_price":{"prompt":-0.1}', "max_price.prompt", "must be at least 0."),
        *(
            (
                f'"max_price":{{"prompt":"{text}"}}',
                "max_price.prompt",
                "must be a plain decimal number.",
            )
            for text in (
                "",
                "-1",
                "+1",
                "1_000",
                "NaN",
                "Infinity",
                "1e3",
                "١",  # noqa: RUF001
                " 1",
                r"1\n",
                ".5",
                "1.",
                "9" * 19,
            )
        ),
    ],
)
def test_names_invalid_preferences(value, param, message):
    assert refusal(value) == (f"provider.{param}", f"'provider.{param}' {message}")


@pytest.mark.parametrize(
    ("preferences", "key"),
    [
        (Preferences(), None),
        (Preferences(sort="price"), "price"),
        (Preferences(sort=Sort("latency")), "latency"),
        (Preferences(sort=Sort()), None),
    ],
)
def test_both_forms_of_sort_are_equivalent(preferences, key):
    assert key == preferences.sort_key()


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (None, {}),
        (0, {50: 0}),
        (1.5, {50: 1.5}),
        (Percentiles(), {}),
        (Percentiles(p50=1, p99=2), {50: 1, 99: 2}),
    ],
)
def test_a_single_number_applies_to_the_median(wish, expected):
    assert expected == cutoffs(wish)


def test_maximum_prices_are_exact_decimals():
    assert MaxPrice(prompt="0.10", image=0.1, request=2).limits() == {
        "prompt": Decimal("0.10"),
        "image": Decimal("0.1"),
        "request": Decimal(2),
    }
