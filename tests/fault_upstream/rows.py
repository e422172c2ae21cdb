"""Valid JSON responses: the correct one, and faults in rows, numbers, indexes and usage."""

import numpy as np

from tests.fault_upstream.messages import whole
from tests.fault_upstream.modes import doubtful, harmless, lie
from tests.fault_upstream.truth import Ask, say, to_base64, write


@harmless
def honest(ask):
    """The correct response."""
    return say(ask.answer())


# Rows: which, how many, in what order.


@harmless
def shuffled(ask):
    """Rows out of order, each with its right index."""
    rows = ask.rows()
    return say(ask.answer(rows[1::2] + rows[::2][::-1]))


@doubtful
def unindexed(ask):
    """Rows in order, none with an index."""
    return _with_indexes(ask, [None] * len(ask.inputs), leave_out=True)


@doubtful
def null_index(ask):
    """Rows in order, each with a null index."""
    return _with_indexes(ask, [None] * len(ask.inputs))


@lie()
def partly_indexed(ask):
    """Shuffled rows of which only some have an index."""
    rows = ask.rows()[::-1]
    for row in rows[: len(rows) // 2 + 1]:
        del row["index"]
    return say(ask.answer(rows if len(rows) > 1 else []))


@lie()
def duplicated_index(ask):
    """The last row has the index of the first, or there are two rows for one input."""
    rows = ask.rows() if len(ask.inputs) > 1 else ask.rows() * 2
    return say(ask.answer([*rows[:-1], {**rows[-1], "index": 0}]))


@lie()
def index_out_of_range(ask):
    """The last index is one too high."""
    return _with_indexes(ask, [*range(len(ask.inputs) - 1), len(ask.inputs)])


@lie()
def index_from_one(ask):
    """Indexes count from 1."""
    return _with_indexes(ask, [at + 1 for at in range(len(ask.inputs))])


@lie()
def index_negative(ask):
    """Indexes count from -n, as if Python were to read them."""
    return _with_indexes(ask, [at - len(ask.inputs) for at in range(len(ask.inputs))])


@harmless
def index_as_string(ask):
    """Rows in reverse order, with indexes as strings."""
    return say(ask.answer([{**row, "index": str(row["index"])} for row in ask.rows()[::-1]]))


@lie()
def index_as_bool(ask):
    """The first two indexes are false and true."""
    return _with_indexes(ask, [at if at > 1 else bool(at) for at in range(len(ask.inputs))])


@lie()
def missing_row(ask):
    """One row too few."""
    return say(ask.answer(ask.rows()[:-1]))


@lie()
def missing_middle_row(ask):
    """The first row of several is missing, and the rest are renumbered."""
    return say(ask.answer(ask.rows(ask.vectors()[1:])))


@lie()
def extra_row(ask):
    """One row too many."""
    return say(ask.answer(ask.rows([*ask.vectors(), ask.vectors()[0]])))


@lie()
def fused(ask):
    """One vector for all of several inputs together (none for a single one)."""
    return say(
        ask.answer(
            ask.rows(ask.vectors().mean(axis=0, keepdims=True)) if len(ask.inputs) > 1 else []
        )
    )


@lie()
def no_rows(ask):
    """An empty list."""
    return say(ask.answer([]))


@lie()
def null_row(ask):
    """The last embedding is null."""
    return _with_last(ask, None)


@lie()
def nested_row(ask):
    """The last embedding is a list of lists, as of a model that does not pool."""
    return _with_last(ask, ask.vectors()[-1:])


@lie()
def empty_row(ask):
    """The last embedding has no numbers."""
    return _with_last(ask, "" if ask.base64 else [])


@lie()
def object_row(ask):
    """The last embedding is an object."""
    return _with_last(ask, {"float": ask.vectors()[-1]})


def _with_indexes(ask: Ask, indexes, *, leave_out=False):
    rows = [{**row, "index": index} for row, index in zip(ask.rows(), indexes, strict=True)]
    return say(
        ask.answer(
            [{k: v for k, v in row.items() if k != "index"} for row in rows] if leave_out else rows
        )
    )


def _with_last(ask: Ask, embedding, *, base64=None):
    rows = ask.rows(base64=base64)
    return say(ask.answer([*rows[:-1], {**rows[-1], "embedding": embedding}]))


# Widths.


@lie()
def short_row(ask):
    """The last row is one number narrower than the rest (all of them, if it is alone)."""
    return say(ask.answer(ask.rows([*ask.vectors()[:-1], ask.vectors()[-1][:-1]])))


@lie()
def wide_row(ask):
    """The last row is one number wider than the rest."""
    last = ask.vectors()[-1]
    return say(ask.answer(ask.rows([*ask.vectors()[:-1], np.append(last, last[:1])])))


@lie()
def all_short(ask):
    """Every row has half its numbers, which shows only if the width is known."""
    return say(
        ask.answer(
            ask.rows(
                ask.vectors()[:, : max(1, ask.width // 2)] if ask.width > 1 else ask.vectors()[:0]
            )
        )
    )


@lie()
def ragged(ask):
    """Every row has another width."""
    return say(
        ask.answer(
            ask.rows([row[: len(row) - at % len(row) - 1] for at, row in enumerate(ask.vectors())])
        )
    )


@lie()
def ignored_dimensions(ask):
    """Vectors of the full width; correct only if the request sets no ``dimensions``."""
    return say(ask.answer(ask.rows(ask.full_vectors())))


# Faults in numbers. In base64 they are in the bits; modes named "…_literal" write them as words.


@lie()
def zero_row(ask):
    """The last row is all zeros."""
    vectors = ask.vectors()
    vectors[-1] = 0
    return say(ask.answer(ask.rows(vectors)))


@lie()
def nan(ask):
    """The last number is not a number."""
    return _with_number(ask, np.nan, b"NaN")


@lie()
def infinite(ask):
    """The last number is infinite."""
    return _with_number(ask, -np.inf, b"-1e999")


@lie()
def nan_literal(ask):
    """The last number is the word NaN, which is not JSON."""
    return _with_literal(ask, b"NaN")


@lie()
def infinity_literal(ask):
    """The last number is the word Infinity, which is not JSON."""
    return _with_literal(ask, b"Infinity")


@lie()
def infinite_literal(ask):
    """The last number is 1e999: JSON, but more than a double holds."""
    return _with_literal(ask, b"1e999")


@lie()
def over_float32(ask):
    """The last number is 1e39: a double holds it, a float32 does not."""
    return _with_literal(ask, b"1e39")


@lie()
def endless_digits(ask):
    """The last number has 5000 digits, which Python refuses to read as an int."""
    return _with_literal(ask, b"1" * 5000)


@lie()
def null_number(ask):
    """The last number is null."""
    return _with_literal(ask, b"null")


@lie()
def bool_number(ask):
    """The last number is true, which numpy takes for 1."""
    return _with_literal(ask, b"true")


@lie()
def string_number(ask):
    """The last number is a string, which numpy reads."""
    return _with_literal(ask, b'"0.5"')


@lie()
def object_number(ask):
    """The last number is an object."""
    return _with_literal(ask, b'{"value": 0.5}')


def _with_number(ask: Ask, number: float, word: bytes):
    if not ask.base64:
        return _with_literal(ask, word)
    vectors = ask.vectors()
    vectors[-1, -1] = number
    return say(ask.answer(ask.rows(vectors)))


def _with_literal(ask: Ask, word: bytes):
    rows = ask.rows(base64=False)
    rows[-1]["embedding"] = [*ask.vectors()[-1][:-1].tolist(), "\0"]
    return [whole(write(ask.answer(rows)).replace(b'"\\u0000"', word))]


# Encodings.


@harmless
def float_for_base64(ask):
    """Lists of numbers, even if base64 was requested."""
    return say(ask.answer(ask.rows(base64=False)))


@doubtful
def base64_for_float(ask):
    """Base64, even if numbers were requested."""
    return say(ask.answer(ask.rows(base64=True)))


@doubtful
def mixed_encodings(ask):
    """Alternating rows of base64 and lists of numbers."""
    pairs = zip(ask.rows(base64=True), ask.rows(base64=False), strict=True)
    return say(ask.answer([pair[at % 2] for at, pair in enumerate(pairs)]))


@lie()
def base64_garbage(ask):
    """The last row is a string that is not base64."""
    return _with_last(ask, "!not-base64?" * 4, base64=True)


@lie()
def base64_hidden_garbage(ask):
    """The last row is base64 with other characters in it, which a lax decoder skips."""
    right = to_base64(ask.vectors()[-1])
    return _with_last(ask, f"{right[:4]}*!{right[4:]}", base64=True)


@lie()
def base64_odd(ask):
    """The last row is valid base64, but a byte too short."""
    return _with_last(
        ask, to_base64(np.frombuffer(ask.vectors()[-1].tobytes()[:-1], "u1")), base64=True
    )


@lie()
def base64_of_doubles(ask):
    """Every row is base64 of doubles, which look like twice as many float32 numbers."""
    return say(ask.answer(ask.rows(ask.vectors().astype("<f8"), base64=True)))


@lie()
def base64_of_nothing_much(ask):
    """The last row is a string of one number."""
    return _with_last(ask, to_base64(np.ones(1, "<f4")) if ask.width > 1 else "", base64=True)


# Usage and the rest of the body.


@harmless
def usage_null(ask):
    """Usage is null."""
    return say(ask.answer(usage=None))


@harmless
def usage_missing(ask):
    """No usage at all."""
    body = ask.answer()
    del body["usage"]
    return say(body)


@harmless
def usage_empty(ask):
    """Usage is an empty object."""
    return say(ask.answer(usage={}))


@harmless
def usage_list(ask):
    """Usage is a list."""
    return say(ask.answer(usage=[7]))


@harmless
def usage_null_counts(ask):
    """The counts are null."""
    return _with_tokens(ask, None)


@harmless
def usage_zero(ask):
    """The counts are 0."""
    return _with_tokens(ask, 0)


@harmless
def usage_negative(ask):
    """The counts are negative."""
    return _with_tokens(ask, -7)


@harmless
def usage_string(ask):
    """The counts are strings."""
    return _with_tokens(ask, "7")


@harmless
def usage_float(ask):
    """The counts are fractions."""
    return _with_tokens(ask, 7.5)


@harmless
def usage_bool(ask):
    """The counts are true."""
    return _with_tokens(ask, True)


@harmless
def usage_huge(ask):
    """The counts are impossibly large."""
    return _with_tokens(ask, 2**62)


def _with_tokens(ask: Ask, count):
    return say(ask.answer(usage={"prompt_tokens": count, "total_tokens": count}))


@harmless
def model_renamed(ask):
    """The response has another model name."""
    return say(ask.answer(model=f"{ask.json.get('model')}-2024-01-25"))


@harmless
def model_missing(ask):
    """The response has neither ``model`` nor ``object``."""
    body = ask.answer()
    return say({"data": body["data"], "usage": body["usage"]})


@harmless
def more_fields(ask):
    """Unknown fields in all objects."""
    rows = [{**row, "object": "vector", "score": {"a": [1]}} for row in ask.rows()]
    return say(ask.answer(rows, id="embd-1", created=1, meta=None))
