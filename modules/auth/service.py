"""Signing up, signing in, and knowing who calls."""

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from core.batching import Batcher
from core.db import Database
from core.errors import (
    Conflict,
    FieldError,
    Forbidden,
    Invalid,
    Malformed,
    Unauthenticated,
)
from core.security import InvalidToken, Principal
from modules.auth import repository
from modules.auth.passwords import Passwords
from modules.auth.tokens import AccessTokens
from modules.users.public import NewUser, User, Users

log = logging.getLogger(__name__)


class InvalidGrant(Unauthenticated):
    """The user name or the password is wrong."""

    def __init__(self) -> None:
        # In the words of RFC 6749, for OAuth2 clients such as the Swagger page.
        super().__init__(error="invalid_grant", error_description=self.title)


class UnsupportedGrantType(Malformed):
    """The grant type must be `password`."""

    def __init__(self) -> None:
        super().__init__(error="unsupported_grant_type")


class WrongPassword(Forbidden):
    """The current password is wrong."""


class PasswordChanged(Conflict):
    """The password was changed by somebody else at this moment."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a successful login gives."""

    access_token: str
    lifetime: timedelta


class Auth:
    """Accounts with passwords, and the sessions they open."""

    token_url = "/auth/token"

    def __init__(
        self,
        db: Database,
        users: Users,
        passwords: Passwords,
        tokens: AccessTokens,
        clock: Callable[[], datetime],
    ) -> None:
        self._db = db
        self._users = users
        self._passwords = passwords
        self._tokens = tokens
        self._clock = clock
        self._callers = Batcher(self._find_callers)

    async def register(self, username: str, password: str) -> User:
        """Make an account. Raises Invalid for the password, UsernameTaken, Busy."""
        self._passwords.check(password, username)
        password_hash = await self._passwords.hash(password)
        async with self._db.transaction() as session:
            user = await self._users.add(session, NewUser(username))
            await repository.add_credential(session, user.id, password_hash)
        fields = {"user_id": user.id, "role": user.role.value, "by": "self"}
        log.info("security.account_created", extra=fields)
        return user

    async def log_in(self, username: str, password: str) -> Grant:
        """Open a session.

        Raises InvalidGrant, after the same work, for an unknown name, a wrong password
        and an account that is not active.
        """
        async with self._db.reading() as session:
            user_id, password_hash = await self._credential(session, username)
        if not await self._passwords.verify(password, password_hash):
            raise _refused(user_id)
        assert user_id is not None and password_hash is not None
        session_id, now = uuid.uuid4(), self._clock()
        async with self._db.transaction() as session:
            opened = await repository.open_session(
                session,
                session_id,
                user_id,
                verified=password_hash,
                expires_at=now + self._tokens.lifetime,
            )
        if not opened:
            raise _refused(user_id)
        log.info("security.logged_in", extra={"user_id": user_id})
        token = self._tokens.issue(user_id, session_id, now)
        return Grant(token, self._tokens.lifetime)

    async def _credential(
        self, session: AsyncSession, username: str
    ) -> tuple[int | None, str | None]:
        user = await self._users.find_by_username(session, username)
        if user is None:
            return None, None
        return user.id, await repository.password_hash(session, user.id)

    async def change_password(self, who: Principal, current: str, new: str) -> None:
        """Replace the password; every other session ends with it.

        Raises WrongPassword, Invalid for the new one, PasswordChanged.
        """
        self._passwords.check(new, who.username, field="new_password")
        async with self._db.reading() as session:
            old = await repository.password_hash(session, who.user_id)
        if old is None or not await self._passwords.verify(current, old):
            raise WrongPassword
        if await self._passwords.verify(new, old):
            where = ("body", "new_password")
            message = "Must differ from the current password."
            raise Invalid(FieldError(where, "same_password", message))
        made = await self._passwords.hash(new)
        async with self._db.transaction() as session:
            if not await repository.replace_password_hash(
                session, who.user_id, old=old, new=made
            ):
                raise PasswordChanged
            await repository.revoke_sessions(session, who.user_id, keep=who.session_id)
        log.info("security.password_changed", extra={"user_id": who.user_id})

    async def authenticate(self, token: str) -> Principal:
        """Who calls with this token, by the database as it is now.

        Raises InvalidToken; DatabaseUnavailable when nobody can know.
        """
        claims = self._tokens.read(token)
        principal = await self._callers.find(claims.session_id)
        if principal is None or principal.user_id != claims.user_id:
            raise InvalidToken
        return principal

    async def _find_callers(self, sessions: Sequence[UUID]) -> dict[UUID, Principal]:
        # As with the token: another server's clock may be a little behind.
        now = self._clock() - self._tokens.leeway
        async with self._db.query() as connection:
            rows = await repository.find_callers(connection, sessions, now)
        return {
            row.session_id: Principal(row.id, row.username, row.role, row.session_id)
            for row in rows
        }


def _refused(user_id: int | None) -> InvalidGrant:
    log.info("security.login_refused", extra={"user_id": user_id})
    return InvalidGrant()
