"""The strict reading of JSON bodies, against a reference that is slow and plain."""

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core.body import DEEPEST, check_json
from core.errors import Invalid, Malformed

# A busy machine is no reason to fail.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def verdict(body: bytes) -> str:
    """What `check_json` makes of it; anything it raises besides fails the test."""
    try:
        check_json(body)
    except Malformed:
        return "malformed"
    except Invalid:
        return "invalid"
    return "accepted"


def reference(body: bytes) -> str:
    """RFC 8259 by the standard parser, and every rule of ours spelt out."""
    broken: list[str] = []

    def number(digits: str) -> float:
        if math.isinf(float(digits)):
            broken.append(digits)
        return 0.0

    def pairs(found: list[tuple[str, Any]]) -> list[Any]:
        names = [name for name, _ in found]
        broken.extend(name for name in names if names.count(name) > 1)
        return [[name, value] for name, value in found] or [[]]

    try:
        parsed = json.loads(
            body.decode(),
            object_pairs_hook=pairs,
            parse_float=number,
            parse_constant=broken.append,
        )
    except (ValueError, RecursionError):
        return "malformed"
    if broken or _depth(body) > DEEPEST:
        return "malformed"
    texts = json.dumps(parsed, ensure_ascii=False)
    is_storable = "\\u0000" not in texts.replace("\\\\", "")
    has_surrogate = any("\ud800" <= character <= "\udfff" for character in texts)
    return "accepted" if is_storable and not has_surrogate else "invalid"


def _depth(body: bytes) -> int:
    """Of text that is JSON: brackets outside of strings."""
    deepest = depth = 0
    characters = iter(body.decode())
    is_text = False
    for character in characters:
        if is_text:
            if character == "\\":
                next(characters)
            is_text = character != '"'
        elif character == '"':
            is_text = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


texts = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(["\x00", "\ud800", "\udfff", "\\", '"', "[", "{"]),
    ),
    max_size=8,
)
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=True),
        st.sampled_from([10**400, 1e308]),
        texts,
    ),
    lambda below: st.one_of(
        st.lists(below, max_size=4), st.dictionaries(texts, below, max_size=4)
    ),
    max_leaves=12,
)
fragments = st.sampled_from(
    [
        *(b"[", b"]", b"{", b"}", b",", b":", b'"', b'"a"', b'"\\u0061"', b" ", b"\n"),
        *(b"1", b"-", b"0", b".5", b"e9", b"1e999", b"-1E400", b"NaN", b"Infinity"),
        *(b"null", b"true", b'"\\u0000"', b'"\\ud800"', b'"\\ud83d\\ude00"', b"\\"),
        *(b"\xef\xbb\xbf", b"\x00", b"\xff", b'"\xed\xa0\x80"', b"9" * 5000, b"[" * 40),
    ]
)


@unhurried
@given(st.binary(max_size=64))
def test_any_bytes_are_judged_as_the_reference_judges_them(body: bytes) -> None:
    assert verdict(body) == reference(body)


@unhurried
@given(st.lists(fragments, max_size=12).map(b"".join))
@example(b'{"a":1,"\\u0061":2}')
@example(b'{"\\u0000":1}')
@example(b'"\\\\u0000"')
@example(b"[" * 60_000)
@example(b'{"a":' * 12_000)
def test_pieces_of_json_are_judged_as_the_reference_judges_them(body: bytes) -> None:
    assert verdict(body) == reference(body)


@unhurried
@given(values, st.sampled_from([None, 1]))
def test_what_json_says_is_judged_as_the_reference_judges_it(
    value: Any, indent: int | None
) -> None:
    body = json.dumps(value, indent=indent).encode()
    assert verdict(body) == reference(body)


@unhurried
@given(values, st.integers(0, DEEPEST + 2))
def test_depth_is_what_counts_not_how_it_is_written(value: Any, depth: int) -> None:
    body = b"[" * depth + json.dumps(value).encode() + b"]" * depth
    assert verdict(body) == reference(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"[" * DEEPEST + b"]" * DEEPEST, "accepted"),
        (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "malformed"),
        (b'{"a":1,"a":1}', "malformed"),
        (b'{"a":{"b":1},"b":{"a":1}}', "accepted"),
        (b"NaN", "malformed"),
        (b"1e400", "malformed"),
        (b"1e-400", "accepted"),
        (b'"\\u0000"', "invalid"),
        (b'["\\udc00\\ud800"]', "invalid"),
        (b'"\\ud83d\\ude00"', "accepted"),
        (b"\xef\xbb\xbf{}", "malformed"),
    ],
)
def test_the_rules_as_they_are_written_down(body: bytes, expected: str) -> None:
    assert (verdict(body), reference(body)) == (expected, expected)
