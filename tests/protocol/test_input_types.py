"""Tests of input types: vendors' spellings, neutral names and Gemini's tasks."""

from typing import get_args

import pytest

from embedroute.backends.gemini import TASKS, GoogleTask
from embedroute.errors import InvalidRequest
from embedroute.protocol import NEUTRAL, SPELLINGS, Limits, decode_request


def read(spelling):
    return decode_request(
        b'{"model":"m","input":"a","input_type":"%s"}' % spelling.encode(), Limits()
    ).input_type


@pytest.mark.parametrize(("spelling", "word"), NEUTRAL.items())
@pytest.mark.parametrize("case", [str, str.upper, str.title])
def test_spellings_of_input_types_are_case_insensitive(spelling, word, case):
    assert word == read(case(spelling))


VENDORS = """
search_query query RETRIEVAL_QUERY retrieval.query GENERIC_RETRIEVAL TEXT_RETRIEVAL search_document document
RETRIEVAL_DOCUMENT retrieval.passage passage GENERIC_INDEX classification CLASSIFICATION text clustering CLUSTERING
separation SEMANTIC_SIMILARITY text-matching QUESTION_ANSWERING FACT_VERIFICATION CODE_RETRIEVAL_QUERY code.query
nl2code.query image IMAGE_RETRIEVAL
"""


@pytest.mark.parametrize("spelling", VENDORS.split())
def test_knows_every_input_type_of_each_vendor(spelling):
    assert read(spelling) in SPELLINGS


def test_each_spelling_has_one_meaning():
    assert len(NEUTRAL) == sum(map(len, SPELLINGS.values()))
    assert all(word in spellings for word, spellings in SPELLINGS.items())


@pytest.mark.parametrize("spelling", ["", "quer", "query ", "document,query", "x" * 300])
def test_refuses_an_unknown_input_type_with_a_list_of_known_ones(spelling):
    with pytest.raises(InvalidRequest) as caught:
        read(spelling)

    assert caught.value.param == "input_type"
    assert ", ".join(SPELLINGS) in caught.value.message
    assert "x" * 129 not in caught.value.message


def test_geminis_tasks_map_to_neutral_input_types():
    tasks = {task: word for word, (task, _) in TASKS.items()}
    assert {*tasks, "", "TASK_TYPE_UNSPECIFIED"} == set(get_args(GoogleTask))
    assert tasks == {task: NEUTRAL[task.lower()] for task in tasks}
