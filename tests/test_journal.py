"""The record of one request: always counts, and the rest only where debug asks."""

from decimal import Decimal

import pytest

from embedroute.journal import Journal


def opened(**what):
    journal = Journal("r")
    journal.open(**{"trace": False, "sent": False, "got": False, "full": False, **what})
    return journal


@pytest.mark.parametrize(
    ("what", "keeps", "notes"),
    [
        ({}, False, []),
        ({"trace": True}, False, [{"stage": "s", "action": "a", "fact": 1}]),
        ({"trace": True, "full": True}, False, [{"stage": "s", "action": "a", "fact": 1, "value": 2}]),
        ({"sent": True}, True, []),
        ({"got": True}, True, []),
    ],
)
def test_only_what_was_asked_for_is_kept(what, keeps, notes):
    journal = opened(**what)

    journal.note("s", "a", {"value": 2}, fact=1)

    assert journal.keeps == keeps
    assert journal.shown() == ({"trace": notes} if notes else {})


def test_one_body_stands_alone_and_several_in_a_list():
    journal = opened(sent=True, got=True)
    journal.sent.append({"n": 1})
    assert journal.shown() == {"upstream_request": {"n": 1}}

    journal.sent.append({"n": 2})
    assert journal.shown() == {"upstream_request": [{"n": 1}, {"n": 2}]}


def test_what_calls_cost_and_count_adds_up():
    journal = Journal("r")
    journal.served("a", {"prompt": Decimal(2)}, 3, {"text": 1})
    journal.served("b", {"prompt": Decimal(4), "request": Decimal("0.5")}, 5, {"text": 2, "image": 3})
    journal.served("a", {}, 7, {})

    assert (list(journal.providers), journal.cost) == (["a", "b"], Decimal("0.500026"))
    assert journal.modality_tokens == {"text": 3, "image": 3}
