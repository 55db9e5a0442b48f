"""Server-sent events: the same ones however the network cuts the bytes."""

import re
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from providers.public import ProviderBadResponse
from providers.sse import LONGEST_LINE, Event, EventReader


def read(*parts: bytes) -> list[Event]:
    reader = EventReader()
    return [event for part in parts for event in reader.feed(part)]


def reference(body: bytes) -> list[Event]:
    """The algorithm of the WHATWG's specification, over the whole text at once."""
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    *lines, _ = re.split("\r\n|\n|\r", text)
    found, name, data = [], "", ""
    for line in lines:
        if not line:
            if data:
                found.append(Event(name, data.removesuffix("\n")))
            name, data = "", ""
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            name = value
        elif field == "data":
            data += f"{value}\n"
    return found


def cut(body: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[start:end] for start, end in pairwise(edges)]


# What a stream is made of, and what looks like it.
PIECES = st.sampled_from(
    [
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"data", b"data:", b"data: ", b"event:"),
        *(b"id: 1", b"retry: 5", b":", b" ", b"{}", b"\0", b"\xef\xbb\xbf"),
        *(b"\xff", b"\xe2\x82", "é€\U0001f600".encode(), "\u2028\x85\x0b".encode()),
    ]
)
BODIES = st.lists(PIECES | st.binary(max_size=4), max_size=40).map(b"".join)


@given(body=BODIES, places=st.lists(st.integers(min_value=0), max_size=12))
@example(body=b"a\rb\ndata: x\n\n", places=[3])
@example(body=b"data: x\r\n\r\n", places=[8, 10])
def test_U25_any_cutting_gives_what_the_specification_says(
    body: bytes, places: list[int]
) -> None:
    expected = reference(body)
    assert read(body) == expected
    assert read(*cut(body, places)) == expected


@given(body=BODIES)
def test_U25_a_byte_at_a_time_is_enough(body: bytes) -> None:
    assert read(*(bytes([byte]) for byte in body)) == reference(body)


STREAMS: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "LF": (b"data: a\n\ndata: b\n\n", [("", "a"), ("", "b")]),
    "CR": (b"data: a\r\rdata: b\r\r", [("", "a"), ("", "b")]),
    "CR_LF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [("", "a"), ("", "b")]),
    "endings_of_all_kinds": (b"data: a\r\ndata: b\rdata: c\n\r\n", [("", "a\nb\nc")]),
    "a_comment": (b": ping\n\n:\n\ndata: a\n: ping\n\n", [("", "a")]),
    "a_name": (b"event: error\ndata: a\n\ndata: b\n\n", [("error", "a"), ("", "b")]),
    "the_last_name": (b"event: a\nevent: b\ndata\n\n", [("b", "")]),
    "a_name_without_data": (b"event: a\n\ndata: b\n\n", [("", "b")]),
    "no_space": (b"data:a\n\ndata:  b\n\n", [("", "a"), ("", " b")]),
    "a_colon_in_the_data": (b'data: {"a": 1}\n\n', [("", '{"a": 1}')]),
    "several_lines": (b"data: a\ndata\ndata: b\n\n", [("", "a\n\nb")]),
    "fields_of_no_interest": (b"id: 1\nretry: 2\nfoo\ndata: a\n\n", [("", "a")]),
    "other_fields": (b" data: a\ndatum: b\nDATA: c\n\n", []),
    "a_byte_order_mark": (b"\xef\xbb\xbfdata: a\n\n", [("", "a")]),
    "a_second_mark": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
    "a_mark_later_on": (b"\n\xef\xbb\xbfdata: a\n\n", []),
    "bad_utf8": (b"data: \xff\xe2\x82\n\n", [("", "\ufffd\ufffd")]),
    "unicode_that_ends_no_line": (
        "data: a\u2028\x85b\n\n".encode(),
        [("", "a\u2028\x85b")],
    ),
    "no_blank_line_at_the_end": (b"data: a\n\ndata: b\n", [("", "a")]),
    "no_end_of_line_at_the_end": (b"data: a\n\ndata: b", [("", "a")]),
    "nothing": (b"", []),
    "blank_lines": (b"\n\r\n\r", []),
}


@pytest.mark.parametrize(("body", "found"), STREAMS.values(), ids=STREAMS.keys())
def test_U25_a_stream_is_read_as_specified(
    body: bytes, found: list[tuple[str, str]]
) -> None:
    assert read(body) == found
    assert read(*(bytes([byte]) for byte in body)) == found


def test_U25_a_character_that_is_cut_in_two_is_whole_again() -> None:
    body = "data: \U0001f600\n\n".encode()
    for place in range(len(body)):
        assert read(body[:place], body[place:]) == [Event("", "\U0001f600")]


def test_an_event_is_told_with_its_blank_line_not_with_what_follows() -> None:
    reader = EventReader()
    assert list(reader.feed(b"data: a\r\n")) == []
    assert list(reader.feed(b"\r")) == [Event("", "a")]
    assert list(reader.feed(b"\ndata: b\n\n")) == [Event("", "b")]


@pytest.mark.parametrize("size", [1, 1_000, 10**6])
def test_U25_the_longest_line_is_read_and_a_longer_one_refused(size: int) -> None:
    longest = b"data:" + b"x" * (LONGEST_LINE - 5)
    too_long = b"data: a\n\n" + longest + b"x\n\n"

    def parts(body: bytes) -> list[bytes]:
        return [body[at : at + size] for at in range(0, len(body), size)]

    (event,) = read(*parts(longest + b"\n\n"))
    assert event.data == "x" * (LONGEST_LINE - 5)
    reader = EventReader()
    found: list[Event] = []
    with pytest.raises(ProviderBadResponse):
        for part in parts(too_long):
            found.extend(reader.feed(part))
    # What came before that line has been told, also when all came at once.
    assert found == [Event("", "a")]


def test_U25_an_event_of_many_lines_is_refused_as_one_of_a_long_line() -> None:
    line = b"data: " + b"x" * 999 + b"\n"
    within, beyond = LONGEST_LINE // 1_000, LONGEST_LINE // 1_000 + 1
    (event,) = read(line * within + b"\n")
    assert len(event.data) == within * 1_000 - 1
    with pytest.raises(ProviderBadResponse):
        read(*[line] * beyond)
    # What belongs to different events adds up to nothing.
    assert len(read(*[line * within + b"\n"] * 3)) == 3


@pytest.mark.parametrize("size", [7, 4_096, 65_536])
def test_U25_no_end_of_line_for_10_MB_is_refused_within_the_cap(size: int) -> None:
    reader, taken = EventReader(), 0
    tracemalloc.start()
    try:
        with pytest.raises(ProviderBadResponse):
            while taken < 10_000_000:
                taken += size
                assert not list(reader.feed(b"x" * size))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken <= LONGEST_LINE + size
    assert peak < 8 * LONGEST_LINE


def test_comments_may_go_on_for_ever() -> None:
    reader = EventReader()
    for _ in range(10_000):
        assert not list(reader.feed(b": still thinking\n\n"))
    assert list(reader.feed(b"data: a\n\n")) == [Event("", "a")]
