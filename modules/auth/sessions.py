"""Sessions: opened by a login, prolonged by refreshing, ended by whoever owns them."""

import logging
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from core.batching import Batcher
from core.client import Client
from core.db import Database
from core.errors import NotFound, Unauthenticated
from core.security import InvalidToken, Principal
from modules.auth import repository
from modules.auth.refresh_tokens import hash_of, new_refresh_token
from modules.auth.settings import AuthSettings
from modules.auth.throttle import network_hash
from modules.auth.tokens import AccessTokens

log = logging.getLogger(__name__)

MOST_LISTED = 1_000
# Few: with a session go all the refresh tokens it ever had, in the same statement.
_SWEPT_AT_A_TIME = 100
# Where somebody has signed in is remembered for a while: see `throttle.py`.
_KEPT_SECONDS = 30 * 24 * 60 * 60


class InvalidGrant(Unauthenticated):
    """The user name or the password is wrong."""

    def __init__(self) -> None:
        # In the words of RFC 6749, for OAuth2 clients such as the Swagger page.
        super().__init__(error="invalid_grant", error_description=self.title)


class RefreshRefused(InvalidGrant):
    """The refresh token is not valid, or no longer."""

    code = InvalidGrant.code


class SessionNotFound(NotFound):
    """There is no such session among yours."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a login or a refresh gives."""

    access_token: str
    lifetime: timedelta
    refresh_token: str


@dataclass(frozen=True, slots=True)
class Session:
    """A session as its owner sees it."""

    id: UUID
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    client: str | None


class Sessions:
    """Everything that becomes of a session, and who calls in one."""

    token_url = "/auth/token"

    def __init__(
        self,
        db: Database,
        tokens: AccessTokens,
        settings: AuthSettings,
        clock: Callable[[], datetime],
    ) -> None:
        self._db = db
        self._tokens = tokens
        self._settings = settings
        self._clock = clock
        self._callers = Batcher(self._find_callers)

    async def authenticate(self, token: str) -> Principal:
        """Who calls with this access token, by the database as it is now.

        Raises InvalidToken; DatabaseUnavailable when nobody can know.
        """
        claims = self._tokens.read(token)
        principal = await self._callers.find(claims.session_id)
        if principal is None or principal.user_id != claims.user_id:
            raise InvalidToken
        return principal

    async def open(
        self, session: AsyncSession, user_id: int, client: Client, *, verified: str
    ) -> Grant | None:
        """A new session, in the caller's transaction.

        None when the verified password hash is not the account's any more, or the
        account is not active.
        """
        settings = self._settings
        new = repository.NewSession(
            uuid.uuid4(),
            user_id,
            min(settings.session_idle_seconds, settings.session_absolute_seconds),
            client.agent,
            network_hash(client),
        )
        if not await repository.open_session(session, new, verified=verified):
            return None
        return await self._grant(session, user_id, new.id)

    async def refresh(self, refresh_token: str) -> Grant:
        """Prolong a session; the token is used up, and the grant has the next.

        A token that was used before is in two hands: its session ends, whichever of
        them is the thief's. Raises RefreshRefused.
        """
        token_hash, found, grant = hash_of(refresh_token), None, None
        # What was never a token must not make anybody wait who writes.
        async with self._db.reading() as session:
            is_token = await repository.is_refresh_token(session, token_hash)
        if is_token:
            async with self._db.transaction() as session:
                found = await repository.lock_session_of(session, token_hash)
                if found is not None:
                    grant = await self._rotate(session, found, token_hash)
        # Not before the transaction has ended: a refusal must not undo a revocation.
        if grant is None:
            user_id = None if found is None else found.user_id
            log.info("security.refresh_refused", extra={"user_id": user_id})
            raise RefreshRefused
        return grant

    async def _rotate(
        self, session: AsyncSession, found: Any, token_hash: str
    ) -> Grant | None:
        """Use the token up for the next; None for a session that is over, or is now."""
        grace = self._settings.refresh_grace_seconds
        if not await repository.use_refresh_token(
            session, token_hash, grace_seconds=grace
        ):
            # One that is over already is not ended again, nor told.
            if await repository.revoke_session(session, found.id, found.user_id):
                fields = {"user_id": found.user_id, "session_id": str(found.id)}
                log.warning("security.refresh_reused", extra=fields)
            return None
        if not found.lasts:
            return None
        await repository.retire_siblings(session, token_hash)
        ends = self._end_of(found)
        await repository.prolong_session(session, found.id, expires_at=ends)
        return await self._grant(session, found.user_id, found.id)

    async def newest(self, user_id: int) -> list[Session]:
        """The sessions that last, those used last first; `MOST_LISTED` at most."""
        async with self._db.reading() as session:
            rows = await repository.sessions_of(session, user_id, limit=MOST_LISTED)
        return [Session(*row) for row in rows]

    async def end(self, user_id: int, session_id: UUID) -> None:
        """Raises SessionNotFound for one that is somebody else's, or over."""
        async with self._db.transaction() as session:
            if not await repository.revoke_session(session, session_id, user_id):
                raise SessionNotFound
        fields = {"user_id": user_id, "session_id": str(session_id)}
        log.info("security.session_ended", extra=fields)

    async def log_out(self, who: Principal) -> None:
        """End the caller's own session; that may be over meanwhile."""
        with suppress(SessionNotFound):
            await self.end(who.user_id, who.session_id)

    async def end_all(self, user_id: int) -> None:
        """End every session of somebody's, the caller's own too."""
        async with self._db.transaction() as session:
            await repository.lock_account(session, user_id)
            await repository.revoke_sessions(session, user_id)
        log.info("security.sessions_ended", extra={"user_id": user_id})

    async def sweep(self) -> None:
        """Forget sessions that have been over for long."""
        swept = _SWEPT_AT_A_TIME
        while swept == _SWEPT_AT_A_TIME:
            async with self._db.transaction() as session:
                swept = await repository.sweep_sessions(
                    session, ended_seconds_ago=_KEPT_SECONDS, limit=_SWEPT_AT_A_TIME
                )

    async def _grant(
        self, session: AsyncSession, user_id: int, session_id: UUID
    ) -> Grant:
        refresh_token = new_refresh_token()
        await repository.add_refresh_token(session, hash_of(refresh_token), session_id)
        token = self._tokens.issue(user_id, session_id, self._clock())
        return Grant(token, self._tokens.lifetime, refresh_token)

    def _end_of(self, found: Any) -> datetime:
        """When a session ends that is used now and not again."""
        idle = timedelta(seconds=self._settings.session_idle_seconds)
        absolute = timedelta(seconds=self._settings.session_absolute_seconds)
        end: datetime = min(found.now + idle, found.created_at + absolute)
        return end

    async def _find_callers(self, sessions: Sequence[UUID]) -> dict[UUID, Principal]:
        return {
            session_id: Principal(user_id, username, role, session_id)
            for session_id, user_id, username, role, _ in await repository.find_callers(
                self._db, sessions
            )
        }
