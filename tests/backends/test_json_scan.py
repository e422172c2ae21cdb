"""Tests the extraction of vectors that a response holds as one list of lists."""

import msgspec
import pytest

from embedroute.backend import UpstreamResponse
from embedroute.backends._json_scan import extract_rows, split_vectors


class Answer(msgspec.Struct):
    rows: list[msgspec.Raw]
    name: str = ""


@pytest.mark.parametrize(
    ("content", "name", "texts"),
    [
        (b'{"rows":[[1,2],[3]],"name":"a"}', "rows", [b"[1,2]", b"[3]"]),
        (b'{ "rows" : [ [1, 2] ,\n [3] ] }', "rows", [b"[1, 2]", b"[3]"]),
        (b'{"rows":[[],[3]]}', "rows", [b"[]", b"[3]"]),
        (b" [[1],[2]] ", "", [b"[1]", b"[2]"]),
        (b'{"rows":["AAAA"]}', "rows", []),
        (b'{"rows":[]}', "rows", []),
    ],
)
def test_extracts_the_rows_of_a_list(content, name, texts):
    rest, found = extract_rows(content, name)

    assert texts == [bytes(text) for text in found]
    assert all(text not in rest for text in texts)
    msgspec.json.decode(rest)


def test_a_field_that_occurs_twice_is_decoded_in_full():
    content = b'{"other":{"rows":[[9]]},"rows":[[1],[2]],"name":"a"}'

    answer, texts = split_vectors(
        UpstreamResponse(200, {}, content),
        Answer,
        "rows",
        lambda answer: answer.rows,
        2,
        in_one_list=True,
    )

    assert ("a", [b"[1]", b"[2]"]) == (answer.name, [bytes(text) for text in texts])


def test_a_long_list_is_not_decoded_in_one_piece():
    content = b'{"rows":[%b],"name":"a"}' % b",".join([b"[1,2,3]"] * 1000)

    answer, _ = split_vectors(
        UpstreamResponse(200, {}, content),
        Answer,
        "rows",
        lambda answer: answer.rows,
        1000,
        in_one_list=True,
    )

    assert all(bytes(row)[:1] == b'"' for row in answer.rows)
