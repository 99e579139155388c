"""Bodies of requests: long lists of numbers are parsed by themselves, and nobody can tell."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import orjson
import pytest

from tessera.api.parsing import EACH, parse
from tessera.errors import ValidationError

PADDING = "x" * 300_000  # only large bodies are taken apart


def numbers(count: int = 200) -> list[float]:
    return [round(random.Random(count).uniform(-1, 1), 6) for _ in range(count)]


def documents(*values: Any) -> dict[str, Any]:
    return {"padding": PADDING, "documents": [{"vectors": {"a": value}} for value in values]}


@pytest.mark.parametrize(
    "body",
    [
        documents(numbers(), numbers(300), numbers(3)),
        documents(numbers(), [numbers(), [numbers()]], [[], numbers()]),
        documents([1] * 400, [2**63 - 1] * 100, [-(2**63), 1.5] * 100, [0.5, 7] * 200),
        documents(numbers(), [True, 0.5] * 200, [None] * 300, ["0.5"] * 200, [{}] * 300, [{"a": 1}] * 99),
        documents(numbers(), f"a text with {numbers()} in it", f'"{numbers()}"', f"\\{numbers()}\\"),
        documents(numbers(), "]" * 600, "[" * 600, '\\"[' * 300, {f"{numbers()}": numbers()}),
        [PADDING, numbers(), numbers()],
        numbers(50_000),
        {"": numbers(), " ": {"0": numbers()}, "padding": PADDING},
    ],
)
@pytest.mark.parametrize("option", [0, orjson.OPT_INDENT_2], ids=["dense", "indented"])
def test_a_large_body_is_read_as_any_json_is(body: Any, option: int) -> None:
    text = orjson.dumps(body, option=option)
    assert parse(text) == orjson.loads(text)
    assert orjson.dumps(parse(text), option=option) == text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: text[:-1], "not valid JSON"),
        (lambda text: text.replace(b"0.", b"00.", 1), "not valid JSON"),
        (lambda text: text.replace(b"0.", b"+0.", 1), "not valid JSON"),
        (lambda text: text.replace(b",", b",,", 1), "not valid JSON"),
        (lambda text: text.replace(b"[", b"[NaN,", 1), "not valid JSON"),
        (lambda text: text.replace(b'"last"', b"18446744073709551616"), "64 bits"),
        (lambda text: text.replace(b"[0", b"[1844674407370955161600,0", 1), "64 bits"),
        (lambda text: text.replace(b'"last"', b"[" * 64 + b"]" * 64), "deeper than 64"),
    ],
)
def test_what_is_wrong_with_a_large_body_is_told(spoil: Any, said: str) -> None:
    text = orjson.dumps({"documents": [[abs(n) for n in numbers()]], "padding": PADDING, "last": "last"})
    text = text.replace(b'"last":"last"', b'"end":"last"')
    assert parse(text) == orjson.loads(text)
    spoiled = spoil(text)
    assert spoiled != text
    with pytest.raises(ValidationError, match=said):
        parse(spoiled)


AT = ("documents", EACH, "vectors")


def test_only_vectors_become_arrays_and_hold_the_very_numbers() -> None:
    """Elsewhere a list stays a list, whatever stands beside or above it; whole numbers stay whole there."""
    whole = list(range(400))
    body = {
        "padding": PADDING,
        "vectors": {"a": numbers()},
        "documents": [
            {
                "vectors": {"a": numbers(), "b": whole, "c": [0.5]},
                "payload": {"n": whole, "vectors": {"a": numbers()}},
            },
            {"vectors": [numbers()], "documents": [{"vectors": {"a": numbers()}}]},
            {"vectors": {"a": {"a": numbers()}}},
        ],
    }
    read = parse(orjson.dumps(body), AT)
    vectors = read["documents"][0]["vectors"]
    for name in ("a", "b"):
        assert isinstance(vectors[name], np.ndarray)
        vectors[name] = vectors[name].tolist()
    assert orjson.dumps(vectors.pop("b")) == orjson.dumps([float(n) for n in whole])
    del body["documents"][0]["vectors"]["b"]  # type: ignore[index]
    assert orjson.dumps(read) == orjson.dumps(body)


@pytest.mark.parametrize("odd", ["1e39", "-3.5e38", "1e308", str(2**60), str(2**63 - 1)])
def test_a_vector_with_a_number_that_is_odd_stays_a_list(odd: str) -> None:
    text = orjson.dumps(documents([0.5] * 200)).replace(b"[0.5,", f"[{odd},".encode())
    assert parse(text, AT) == orjson.loads(text)
    assert type(parse(text, AT)["documents"][0]["vectors"]["a"]) is list


@pytest.mark.parametrize(
    "wrong", ["NaN", "01.5", "1.", ".5", "1e999", "18446744073709551615", "-9223372036854775809"]
)
def test_what_is_no_number_is_told_of_a_vector_as_of_anything_else(wrong: str) -> None:
    text = orjson.dumps(documents([0.5] * 200)).replace(b"[0.5,", f"[{wrong},".encode())
    told = []
    for vectors in (None, AT):
        with pytest.raises(ValidationError) as refused:
            parse(text, vectors)
        told.append([problem.message for problem in refused.value.problems])
    assert told[0] == told[1]


def test_brackets_in_strings_do_not_count_as_depth() -> None:
    deep = {"a": "[" * 1000, "b": '"' + "{" * 1000, "c": [[n] for n in range(100)], "padding": PADDING}
    for body in (deep, {**deep, "escaped": '\\"['}):
        assert parse(orjson.dumps(body)) == body
