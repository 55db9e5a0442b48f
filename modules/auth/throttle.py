"""How often something may be tried: counted in the database, for all servers at once.

Every attempt is counted as a failure before it is made, so that many at once get no
further than one after the other; a success takes that back. Nobody is locked out for
good: waits end, and what others guess from elsewhere does not count for a network from
which the account has been signed in to before.
"""

import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from core.client import Client
from core.db import Database
from core.errors import TooMany, Unavailable
from modules.auth import attempts
from modules.auth.attempts import Limit
from modules.auth.settings import AuthSettings

log = logging.getLogger(__name__)

_QUARTER_OF_AN_HOUR, _HOUR, _DAY = 15 * 60, 60 * 60, 24 * 60 * 60
_SWEPT_AT_A_TIME = 1_000


class TooManyAttempts(TooMany):
    """There were too many attempts; wait before the next one."""

    retry_after_seconds = attempts.FIRST_WAIT_SECONDS


@dataclass(frozen=True, slots=True)
class Counted:
    """What an attempt is counted under, and how often that may be."""

    what: str
    key_hash: str
    limit: Limit


@dataclass(frozen=True, slots=True)
class Guess:
    """A password about to be verified, counted as a wrong one."""

    network: Counted
    account: Counted


class Throttle:
    """Bounds the guessing of passwords, and registrations."""

    def __init__(self, db: Database, settings: AuthSettings) -> None:
        self._db = db
        self._account = Limit(settings.login_attempts, _DAY)
        self._network = Limit(settings.network_login_attempts, _QUARTER_OF_AN_HOUR)
        self._registrations = Limit(settings.network_registrations, _HOUR)

    async def guess(
        self, account: str | int, client: Client, *, is_known_there: bool
    ) -> Guess:
        """Count a guess before it is made; call `succeeded` if it turns out right.

        `account` is a user's id, or a name that nobody has. `is_known_there`: the
        account was signed in to from that network before. Raises TooManyAttempts, and
        has then counted nothing.
        """
        network = Counted("network", network_hash(client), self._network)
        key = _account_key(account, client if is_known_there else None)
        counted = Counted("account", key, self._account)
        await self._reserve(network)
        async with self._unless(network, TooManyAttempts, Unavailable):
            await self._reserve(counted)
        return Guess(network, counted)

    @asynccontextmanager
    async def guessing(self, guess: Guess) -> AsyncIterator[None]:
        """Around the verification: what ends as Unavailable was no guess."""
        async with (
            self._unless(guess.network, Unavailable),
            self._unless(guess.account, Unavailable),
        ):
            yield

    @asynccontextmanager
    async def registering(self, client: Client) -> AsyncIterator[None]:
        """Around a registration. Raises TooManyAttempts."""
        key = _digest("registrations", client.network)
        counted = Counted("registrations", key, self._registrations)
        await self._reserve(counted)
        async with self._unless(counted, Unavailable):
            yield

    async def succeeded(self, session: AsyncSession, guess: Guess) -> None:
        """The guess was right: forget what was tried for this account."""
        await attempts.forget(session, guess.account.key_hash)
        await attempts.give_back(session, guess.network.key_hash, guess.network.limit)

    async def pardon(self, session: AsyncSession, user_id: int) -> None:
        """Forget what was tried for this account from anywhere it is not known."""
        await attempts.forget(session, _account_key(user_id, None))

    async def sweep(self) -> None:
        """Forget what no longer counts."""
        swept = _SWEPT_AT_A_TIME
        while swept == _SWEPT_AT_A_TIME:
            async with self._db.transaction() as session:
                swept = await attempts.sweep(session, limit=_SWEPT_AT_A_TIME)

    async def _reserve(self, counted: Counted) -> None:
        if not counted.limit.failures:
            return
        key, limit = counted.key_hash, counted.limit
        async with self._db.statement() as connection:
            if await attempts.reserve(connection, key, limit):
                return
        async with self._db.query() as connection:
            seconds = await attempts.wait_seconds(connection, key)
        fields = {"limit": counted.what, "seconds": seconds}
        log.warning("security.throttled", extra=fields)
        raise TooManyAttempts(retry_after_seconds=seconds)

    @asynccontextmanager
    async def _unless(
        self, counted: Counted, *reasons: type[Exception]
    ) -> AsyncIterator[None]:
        """Take the reservation back if the block ends for one of these reasons."""
        try:
            yield
        except reasons:
            async with self._db.transaction() as session:
                await attempts.give_back(session, counted.key_hash, counted.limit)
            raise


def network_hash(client: Client) -> str:
    """Knows a network again; there are few enough of IPv4 to try them all."""
    return _digest("network", client.network)


def _account_key(account: str | int, place: Client | None) -> str:
    # Of names that nobody has, too: or a wait would tell that somebody has this one.
    # Of users the id: whoever has a token could change the name after every guess.
    who = ("id", str(account)) if isinstance(account, int) else ("name", account)
    where = "anywhere" if place is None else place.network
    return _digest("account", *who, where)


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()
