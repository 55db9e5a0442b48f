"""The text and id types that every schema uses."""

import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

LARGEST_ID = 2**63 - 1
_CANONICAL_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,5000}", re.ASCII)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# Separators, control and format characters: what leaves no mark on a page.
_INVISIBLE = frozenset({"Zs", "Zl", "Zp", "Cc", "Cf"})


def is_storable(text: str) -> bool:
    """Whether both databases and UTF-8 can hold it: no NUL, no lone surrogate."""
    return not _UNSTORABLE.search(text)


def storable(text: str) -> str:
    """Replace NUL and lone surrogates by U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def is_blank(text: str) -> bool:
    """Whether nobody could see anything in it."""
    return all(unicodedata.category(character) in _INVISIBLE for character in text)


def _refuse_unstorable(text: str) -> str:
    if not is_storable(text):
        raise PydanticCustomError(
            "invalid_text", "Must not contain NUL or unpaired surrogates."
        )
    return text


SafeText = Annotated[str, AfterValidator(_refuse_unstorable)]


def _canonical(value: Any) -> Any:
    """Read a number of a path or a query: digits as we print them, and nothing else."""
    if isinstance(value, str):
        if not _CANONICAL_INTEGER.fullmatch(value) or len(value) > 20:
            raise PydanticCustomError("not_a_number", "Must be a whole number.")
        return int(value)
    return value


Canonical = BeforeValidator(_canonical)
"""For a number of a path or a query: `1.0`, `+1` and `1_000` are refused."""

_ID = {"type": "integer", "format": "int64", "minimum": 1, "maximum": LARGEST_ID}
# More is accepted than is published: 0 and -1 are simply not found.
Id = Annotated[
    int, Field(ge=-LARGEST_ID, le=LARGEST_ID), Canonical, WithJsonSchema(_ID)
]
"""An id of a path or a query."""
ReadId = Annotated[int, WithJsonSchema(_ID)]
"""An id that a response shows."""


def _written_out(value: Any) -> Any:
    # A bare number would be taken for seconds, or for milliseconds, since 1970.
    if isinstance(value, str) and not _DATE.match(value):
        raise PydanticCustomError("not_a_time", "Must be a date and time (RFC 3339).")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError(
            "out_of_range", "Must be between the years 1 and 9999 in UTC."
        ) from None


Moment = Annotated[
    AwareDatetime, BeforeValidator(_written_out), AfterValidator(_in_utc)
]
"""A moment with its time zone, as RFC 3339 writes it; comes out in UTC."""
