"""Cursor pages: each costs the same however deep, and none shows a row twice."""

import base64
import binascii
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Annotated, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel, Field

from core.errors import FieldError, Invalid
from core.text import LARGEST_ID, Canonical

T = TypeVar("T")
LARGEST_PAGE = 100

# The bounds come before `Canonical`: behind a validator of anything they are no part
# of the integer's schema.
PageLimit = Annotated[
    int,
    Field(ge=1, le=LARGEST_PAGE),
    Canonical,
    Query(description="How many items a page holds."),
]
CursorText = Annotated[
    str | None,
    Query(
        max_length=64,
        description="`next_cursor` of the page before; leave it out for the first.",
    ),
]


class Page(BaseModel, Generic[T]):
    """A page of a longer list, newest first."""

    items: list[T]
    next_cursor: str | None = Field(
        description="Ask again with this as `cursor`; null on the last page.",
        examples=["cXVlc3Rpb25zOjQy"],
    )


def encode_cursor(kind: str, *place: int) -> str:
    """Make the opaque text that continues after a place in the list called `kind`."""
    written = ":".join((kind, *map(str, place)))
    return base64.urlsafe_b64encode(written.encode()).decode().rstrip("=")


def decode_cursor(
    kind: str, cursor: str | None, *, numbers: int = 1
) -> tuple[int, ...] | None:
    """Return the place, so many numbers, to continue after.

    Raises Invalid when this list never gave the cursor.
    """
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        found, *written = base64.urlsafe_b64decode(padded).decode().split(":")
        place = tuple(map(int, written))
        # Only our own spelling passes: no other alphabet, padding or leading zeros.
        is_ours = found == kind and encode_cursor(kind, *place) == cursor
        is_in_range = all(0 < number <= LARGEST_ID for number in place)
        if is_ours and is_in_range and len(place) == numbers:
            return place
    except (binascii.Error, ValueError):
        pass
    raise invalid_cursor()


def invalid_cursor() -> Invalid:
    """The list never gave this cursor."""
    message = "Must be the next_cursor of an earlier page of this list."
    return Invalid(FieldError(("query", "cursor"), "invalid_cursor", message))


def cut_page(rows: Sequence[T], limit: int) -> tuple[Sequence[T], bool]:
    """Split what was read with `limit + 1` into the page and whether more follows."""
    return rows[:limit], len(rows) > limit


async def every(
    read: Callable[[T | None], Awaitable[Sequence[T]]],
) -> AsyncGenerator[T, None]:
    """All of a list that is too long to be held: `read` gives the page after an item.

    A page is read once the one before it was taken, in a short `reading()` of its own:
    no connection waits for whoever takes them.
    """
    last: T | None = None
    while page := await read(last):
        for item in page:
            yield item
        last = page[-1]
