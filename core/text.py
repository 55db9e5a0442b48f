"""The text and id types that every schema uses."""

import re
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

LARGEST_ID = 2**63 - 1
_CANONICAL_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,5000}", re.ASCII)
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
    """Read an id from a path or a query: digits as we print them, and nothing else."""
    if isinstance(value, str):
        if not _CANONICAL_INTEGER.fullmatch(value) or len(value) > 20:
            raise PydanticCustomError("invalid_id", "Must be a whole number.")
        return int(value)
    return value


# Ids from a path are not bounded below: 0 and -1 are simply not found.
Id = Annotated[
    int,
    Field(le=LARGEST_ID, ge=-LARGEST_ID),
    BeforeValidator(_canonical),
    WithJsonSchema({"type": "integer", "format": "int64", "maximum": LARGEST_ID}),
]
