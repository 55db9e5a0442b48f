"""Passwords: which are accepted, and how they are hashed without stopping anyone."""

import asyncio
import string
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TypeVar

from passlib.hash import argon2

from core.db import Busy
from core.errors import FieldError, Invalid
from core.text import is_storable
from modules.auth.settings import AuthSettings

T = TypeVar("T")

LONGEST_CHARS = 128
"""At most 512 bytes of UTF-8: what is hashed is bounded too."""
_LONGEST_LISTED = 20
_SERVICE = "vopros"
_PADDING = string.digits + string.punctuation + string.whitespace


class Passwords:
    """Hashes and verifies in a few threads of its own; what waits is bounded.

    argon2 frees the interpreter while it works, so nothing else has to stand still.
    """

    def __init__(self, settings: AuthSettings) -> None:
        self._shortest = settings.shortest_password_chars
        self._argon2 = argon2.using(  # type: ignore[no-untyped-call]
            type="ID",
            memory_cost=settings.hash_memory_kib,
            rounds=settings.hash_rounds,
            parallelism=1,
        )
        self._threads = ThreadPoolExecutor(settings.hash_threads, "password")
        self._most = settings.hash_threads + settings.hash_queue
        self._waiting = 0
        # Verified when there is no such user, so that both cases do the same work.
        self._nobodys = self._argon2.hash("nobody has this password")

    def check(self, password: str, username: str, field: str = "password") -> None:
        """Raise Invalid for a password that must not be set; no hash is made."""
        if found := self._objection(password, normal(username).casefold()):
            code, message = found
            raise Invalid(FieldError(("body", field), code, message))

    async def hash(self, password: str) -> str:
        """Raises Busy when too many are waiting already."""
        return await self._in_thread(lambda: self._argon2.hash(normal(password)))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether the password is the one; without a hash the same work says no.

        Raises Busy when too many are waiting already.
        """
        known = password_hash or self._nobodys
        matches = await self._in_thread(
            lambda: self._argon2.verify(normal(password), known)
        )
        return matches and password_hash is not None

    def close(self) -> None:
        """Stop the threads; what is under way ends first."""
        self._threads.shutdown()

    def _objection(self, password: str, username: str) -> tuple[str, str] | None:
        # No schema has looked at what an operator gives.
        if not is_storable(password):
            return "invalid_text", "Must not contain NUL or unpaired surrogates."
        if len(password) > LONGEST_CHARS:
            return "too_long", f"Must have at most {LONGEST_CHARS} characters."
        # Counted in both spellings: one ligature can become eighteen letters.
        if min(len(password), len(normal(password))) < self._shortest:
            return "too_short", f"Must have at least {self._shortest} characters."
        folded = normal(password).casefold()
        # What is added around a guessable word is guessed along with it.
        word = folded.strip(_PADDING)
        if word and word == username.strip(_PADDING):
            return "password_blocklisted", "Must not be made of the user name."
        if word == _SERVICE:
            return "password_blocklisted", "Must not be made of this service's name."
        if _is_common(folded):
            return "password_blocklisted", "Must not be among the most common ones."
        return None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._waiting >= self._most:
            raise Busy("Too many people are signing in at this moment.")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


def normal(text: str) -> str:
    """One spelling (NFKC) of what looks the same, so that any keyboard can type it."""
    return unicodedata.normalize("NFKC", text)


@cache
def _common_words() -> frozenset[str]:
    from zxcvbn.frequency_lists import FREQUENCY_LISTS

    # A word is only on the list where it ranks best: many a common password is a name.
    return frozenset(word for words in FREQUENCY_LISTS.values() for word in words)


def _is_common(folded: str) -> bool:
    """Whether it, or what it only repeats, is on a list of what people choose."""
    unit = _repeated(folded)
    if folded in _common_words() or unit in _common_words():
        return True
    # The lists leave out what follows a rule. Longer than anything on them it passes:
    # what a password is made of is nobody's business, and spaces are characters too.
    is_like_those = folded.isascii() and len(folded) <= _LONGEST_LISTED
    if not is_like_those or folded.isspace():
        return False
    return len(unit) <= 3 or _is_run(folded)


def _repeated(text: str) -> str:
    """The shortest piece that, repeated, is the text; the text itself at worst."""
    return text[: (text + text).index(text, 1)]


def _is_run(text: str) -> bool:
    """Whether each character is the neighbour of the one before, as in `87654321`."""
    steps = {ord(after) - ord(before) for before, after in pairwise(text)}
    return steps in ({1}, {-1})
