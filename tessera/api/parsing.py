"""JSON bodies: one strict parser with limits, and vectors that never become Python numbers."""

from __future__ import annotations

import contextlib
import re
import secrets
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from tessera.errors import Problem, ValidationError, quote

#: Deepest nesting of lists and objects in a body: a filter may nest 16 conditions of two levels each.
MAX_DEPTH = 64

#: Turns every digit into 0: a body without 19 of them in a row holds no integer over 64 bits.
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 19
#: All that is no bracket, which `bytes.translate` leaves out.
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
#: All that is neither a bracket nor a quotation mark.
_NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_LONG_INTEGER = re.compile(rb"(?<![^\[:,\s])-?[0-9]{19,}(?![^\]},\s])")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)

#: Most lists and objects in a body: making millions of them would hold every thread up for seconds.
_MOST_CONTAINERS = 500_000

#: Bodies from this size on are parsed in a thread, their long lists of numbers (bytes of text) one by one.
LARGE_BODY = 256 * 1024
_LONG_LIST = 512
#: With more ends of lists than this a body is parsed as a whole: looking at each would take longer.
_MOST_LISTS = 20_000

#: Sum of the squares of a vector above which its numbers are looked at one by one.
_LARGE_SQUARE = 2.0**120

#: The way to an object in a body: the keys, and `EACH` for a list.
Place = tuple[str, ...]
EACH = "[]"

#: Bytes of a text.
Characters = npt.NDArray[np.uint8]


def parse(body: bytes, vectors: Place | None = None) -> Any:
    """Parse `body`. Raises `ValidationError` that says where it is not JSON, or that it nests too deep.

    In a large body, long lists of numbers directly inside the objects at `vectors` become ``float64[n]`` arrays, of
    which no number is infinite as float32 either. What is odd in any way stays the list that it is.
    """
    if len(body) < LARGE_BODY:
        return _parse_whole(body)
    with contextlib.suppress(_NotApart, ValidationError):  # what is wrong with it, the whole body tells
        return _parse_apart(body, vectors)
    return _parse_whole(body)


def _parse_whole(body: bytes) -> Any:
    # Counting brackets and looking for long numbers is cheap and settles nearly every body that is not large.
    is_simple = len(body) < LARGE_BODY and body.count(b"[") + body.count(b"{") <= MAX_DEPTH
    outline = None if is_simple else _outline(body)
    if outline is not None and len(outline) > _MOST_CONTAINERS and _containers(outline) > _MOST_CONTAINERS:
        message = f"The body has more than {_MOST_CONTAINERS} lists and objects; send it in several requests."
        raise ValidationError([Problem(("body",), message, "json_too_large")])
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if "depth limit" in error.msg or "recursion" in error.msg:
            raise _too_deep() from None
        raise ValidationError(
            [
                Problem(
                    ("body",),
                    f"The body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno}).",
                    "json_invalid",
                )
            ]
        ) from None
    if outline is not None and _depth(outline) > MAX_DEPTH:
        raise _too_deep()
    if _LONG_NUMBER in body.translate(_ZEROS):
        _refuse_long_integers(_STRING.sub(b"", body))
    return value


class _NotApart(Exception):
    """The body is to be parsed as a whole: it holds no long lists of numbers, or is odd in some way."""


def _parse_apart(body: bytes, vectors: Place | None) -> Any:
    """Parse `body` with each long list of numbers by itself.

    A thousand vectors parsed in one call hold every other thread up for 20 ms, and one by one they take half of that.
    Each is cut out and an object put in its place, whose key nobody can know. Where it was not a list at all but part
    of a string, the key's quotation mark ends that string, and what is left is no JSON.
    """
    key = secrets.token_hex(8)
    lists: list[bytes] = []
    parts: list[bytes] = []
    position = done = ends = 0
    while (end := body.find(b"]", position)) >= 0:
        ends += 1
        if ends > _MOST_LISTS:
            raise _NotApart
        start = body.rfind(b"[", position, end)
        if start >= 0 and end - start >= _LONG_LIST:
            text = body[start : end + 1]
            if _may_be_numbers(text):
                parts += body[done:start], b'{"%s":%d}' % (key.encode(), len(lists))
                lists.append(text)
                done = end + 1
        position = end + 1
    if not lists:
        raise _NotApart
    parts.append(body[done:])
    with np.errstate(over="ignore"):  # becomes infinity, which `_vector` does not take
        return _Filling(key, lists).fill(_parse_whole(b"".join(parts)), vectors)


def _may_be_numbers(text: bytes) -> bool:
    # A string has a quotation mark; true and null have a u, false and null an l; no number has any of these.
    return not (b'"' in text or b"{" in text or b"u" in text or b"l" in text)


def _numbers(text: bytes) -> list[Any]:
    """Parse the text of a list without lists in it; `_NotApart` when it is not one of numbers that fit into 64 bits."""
    try:
        numbers: list[Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise _NotApart from None
    # A point for each: there is no whole number among them.
    if text.count(b".") != len(numbers) and _LONG_NUMBER in text.translate(_ZEROS):
        raise _NotApart
    return numbers


class _Filling:
    """Puts lists where `_parse_apart` left objects with the key `key`."""

    def __init__(self, key: str, lists: list[bytes]) -> None:
        self._key = key
        self._lists = lists
        self._parser = simdjson.Parser()

    def fill(self, value: Any, vectors: Place | None) -> Any:
        """Return `value` with the lists in it, which is at most `MAX_DEPTH` deep.

        `vectors` is what is left of the way to the objects whose lists become arrays; None away from it.
        """
        key = self._key
        if isinstance(value, dict):
            if key in value:
                return _numbers(self._lists[value[key]])
            for name, inner in value.items():
                if isinstance(inner, dict):
                    is_vector = vectors == () and key in inner
                    value[name] = (
                        self._vector(inner[key]) if is_vector else self.fill(inner, _below(vectors, name))
                    )
                elif isinstance(inner, list):
                    value[name] = self.fill(inner, _below(vectors, name))
        else:
            below = _below(vectors, EACH)
            for number, inner in enumerate(value):
                if isinstance(inner, dict | list):
                    value[number] = self.fill(inner, below)
        return value

    def _vector(self, number: int) -> npt.NDArray[np.float64] | list[Any]:
        text = self._lists[number]
        try:
            row = np.frombuffer(cast(simdjson.Array, self._parser.parse(text)).as_buffer(of_type="d"))
        except (ValueError, TypeError, RuntimeError):  # whatever simdjson does not take
            return _numbers(text)
        # Larger than this may be infinite as float32, or a whole number beyond 64 bits.
        return row if row.dot(row) < _LARGE_SQUARE else _numbers(text)


def _below(vectors: Place | None, step: str) -> Place | None:
    return vectors[1:] if vectors and vectors[0] == step else None


def _outline(body: bytes) -> Characters:
    """Return the brackets of `body`, which is JSON, without those in its strings."""
    if b"\\" in body:
        return np.frombuffer(_STRING.sub(b"", body).translate(None, _NO_BRACKETS), np.uint8)
    characters = np.frombuffer(body.translate(None, _NO_STRUCTURE), np.uint8)
    is_quote = characters == ord('"')
    is_outside = np.cumsum(is_quote, dtype=np.int32) & 1 == 0
    outline: Characters = characters[is_outside & ~is_quote]
    return outline


def _containers(outline: Characters) -> int:
    return int(np.count_nonzero(outline & 0xDF == ord("[")))


def _depth(outline: Characters) -> int:
    """Return how deep lists and objects nest, given their brackets."""
    # The four brackets lie next to each other in pairs: [ and { open, ] and } close; case is one bit.
    folded = outline & 0xDF
    steps = (folded == ord("[")).astype(np.int8) - (folded == ord("]"))
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def _too_deep() -> ValidationError:
    message = f"The body nests lists and objects deeper than {MAX_DEPTH} levels."
    return ValidationError([Problem(("body",), message, "json_too_deep")])


def _refuse_long_integers(bare: bytes) -> None:
    """Raise `ValidationError` for an integer over 64 bits: it would silently lose its last digits.

    `bare` is the JSON without its strings.
    """
    for match in _LONG_INTEGER.finditer(bare):
        digits = match[0].decode()
        # The length first: reading a million digits takes longer than anything else here.
        if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
            message = (
                f"The number {quote(digits).strip(chr(39))} does not fit into 64 bits; send it as a string."
            )
            raise ValidationError([Problem(("body",), message, "number_out_of_range")])
