"""Passwords: which are accepted, and how they are hashed without stopping anyone."""

import asyncio
import logging
import string
import unicodedata
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TypeVar

from passlib.context import CryptContext

from core.db import Busy
from core.errors import FieldError, Invalid
from core.text import is_storable
from modules.auth.settings import AuthSettings

log = logging.getLogger(__name__)
T = TypeVar("T")

LONGEST_CHARS = 128
LONGEST_BYTES = 512
"""Of what is hashed, in UTF-8: one character can become eighteen in the other form."""
_BCRYPT_BYTES = 72
_LONGEST_LISTED = 20
_SERVICE = "vopros"
_PADDING = string.digits + string.punctuation + string.whitespace


@dataclass(frozen=True, slots=True)
class Verified:
    """Whether a password is the one that was hashed."""

    matches: bool
    replacement: str | None = None
    """The hash to keep in its place, when it would be made otherwise today."""
    is_readable: bool = True
    """Whether the hash is of a kind that we know."""

    def __bool__(self) -> bool:
        # Else every answer would be true, for whoever forgets to ask for `matches`.
        return self.matches


class Passwords:
    """Hashes and verifies in a few threads of its own; `turn` bounds what waits.

    argon2 frees the interpreter while it works, so nothing else has to stand still.
    """

    def __init__(self, settings: AuthSettings) -> None:
        self._shortest = settings.shortest_password_chars
        # The first hashes; what others hashed with bcrypt is read, and then replaced.
        self._policy = CryptContext(
            schemes=["argon2", "bcrypt"],
            deprecated=["bcrypt"],
            argon2__type="ID",
            argon2__memory_cost=settings.hash_memory_kib,
            argon2__rounds=settings.hash_rounds,
            argon2__parallelism=1,
        )
        # Tries itself out once: here, and not while somebody waits.
        self._policy.handler("bcrypt").get_backend()
        self._threads = ThreadPoolExecutor(settings.hash_threads, "password")
        self._most = settings.hash_threads + settings.hash_queue
        self._in_line = 0
        # While some hash, as many look up what will be hashed next.
        self._turns = asyncio.Semaphore(2 * settings.hash_threads)
        # Verified when there is no such user, so that both cases do the same work.
        self._nobodys = self._policy.hash("nobody has this password")

    def check(self, password: str, username: str, field: str = "password") -> None:
        """Raise Invalid for a password that must not be set; no hash is made."""
        if found := self._objection(password, normal(username).casefold()):
            code, message = found
            raise Invalid(FieldError(("body", field), code, message))

    async def hash(self, password: str) -> str:
        """The hash to store."""
        return await self._in_thread(lambda: self._policy.hash(normal(password)))

    async def verify(
        self, password: str, password_hash: str | None, *, user_id: int | None = None
    ) -> Verified:
        """Whether the password is the one; without a hash the same work says no.

        A hash that cannot be read is as good as none; the log says whose (`user_id`).
        """
        verified = await self._in_thread(
            lambda: self._verify(normal(password), password_hash)
        )
        if not verified.is_readable:
            log.error("auth.hash_unreadable", extra={"user_id": user_id})
        return verified

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Around all that hashes: few have a turn at a time, and what waits is bounded.

        Else hundreds who sign in at once would take every connection to the database,
        and all who have signed in before would wait for them. Raises Busy.
        """
        if self._in_line >= self._most:
            raise Busy("Too many people are signing in at this moment.")
        self._in_line += 1
        try:
            async with self._turns:
                yield
        finally:
            self._in_line -= 1

    def close(self) -> None:
        """Stop the threads; what is under way ends first."""
        self._threads.shutdown()

    def _verify(self, password: str, password_hash: str | None) -> Verified:
        """All of it in one job of a thread."""
        found = password_hash and self._compare(password, password_hash)
        if not found:
            self._policy.verify(password, self._nobodys)
            return Verified(matches=False, is_readable=password_hash is None)
        matches, is_outdated = found
        replacement = self._policy.hash(password) if matches and is_outdated else None
        return Verified(matches, replacement)

    def _compare(self, password: str, password_hash: str) -> tuple[bool, bool] | None:
        """Whether it matches, and whether the hash would be made otherwise today.

        None for a hash of no kind that we know.
        """
        given: str | bytes = password
        try:
            if self._policy.identify(password_hash) == "bcrypt":
                # Those who made it looked at no more. The replacement is made of all
                # that was given: from then on every byte counts.
                given = password.encode()[:_BCRYPT_BYTES]
            matches = self._policy.verify(given, password_hash)
            return matches, self._policy.needs_update(password_hash)
        except Exception:
            # passlib raises almost anything for a mangled one, and may quote it.
            return None

    def _objection(self, password: str, username: str) -> tuple[str, str] | None:
        # No schema has looked at what an operator gives.
        if not is_storable(password):
            return "invalid_text", "Must not contain NUL or unpaired surrogates."
        if len(password) > LONGEST_CHARS:
            return "too_long", f"Must have at most {LONGEST_CHARS} characters."
        hashed = normal(password)
        if len(hashed.encode()) > LONGEST_BYTES:
            return "too_long", f"Must have at most {LONGEST_BYTES} bytes."
        # Counted in both spellings: one ligature can become eighteen letters.
        if min(len(password), len(hashed)) < self._shortest:
            return "too_short", f"Must have at least {self._shortest} characters."
        folded = hashed.casefold()
        if _is_made_of(username.strip(_PADDING), folded):
            return "password_blocklisted", "Must not be made of the user name."
        if _is_made_of(_SERVICE, folded):
            return "password_blocklisted", "Must not be made of this service's name."
        if _is_common(folded):
            return "password_blocklisted", "Must not be among the most common ones."
        return None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, work)


def normal(text: str) -> str:
    """One spelling (NFKC) of what looks the same, so that any keyboard can type it."""
    return unicodedata.normalize("NFKC", text)


def _is_made_of(word: str, folded: str) -> bool:
    """Whether it is the word, once or more often, and what is easily put around it."""
    if not word or word not in folded:
        return False
    # What is added to a guessable word is guessed along with it.
    return not folded.replace(word, "").strip(_PADDING)


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
