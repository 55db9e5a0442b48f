"""Signing up, signing in, and passwords."""

import logging

from sqlalchemy.ext.asyncio import AsyncSession

from core.client import Client
from core.db import Database
from core.errors import Conflict, FieldError, Forbidden, Invalid, Malformed
from core.security import Principal
from modules.auth import repository
from modules.auth.passwords import Passwords
from modules.auth.sessions import Grant, InvalidGrant, Sessions
from modules.auth.throttle import Throttle, network_hash
from modules.users.public import NewUser, Role, User, UserNotFound, Users

log = logging.getLogger(__name__)


class UnsupportedGrantType(Malformed):
    """The grant type must be `password`."""

    def __init__(self) -> None:
        super().__init__(error="unsupported_grant_type")


class WrongPassword(Forbidden):
    """The current password is wrong."""


class PasswordChanged(Conflict):
    """The password was changed by somebody else at this moment."""


class Auth:
    """Accounts with passwords."""

    def __init__(
        self,
        db: Database,
        users: Users,
        passwords: Passwords,
        sessions: Sessions,
        throttle: Throttle,
    ) -> None:
        self._db = db
        self._users = users
        self._passwords = passwords
        self._throttle = throttle
        self._sessions = sessions

    async def sign_up(self, username: str, password: str, client: Client) -> User:
        """Make an account for whoever asks. Raises as `register`, TooManyAttempts."""
        self._passwords.check(password, username)
        async with self._throttle.registering(client):
            return await self.register(username, password)

    async def register(
        self, username: str, password: str, role: Role = Role.USER
    ) -> User:
        """Make an account. Raises Invalid for the password, UsernameTaken, Busy."""
        self._passwords.check(password, username)
        password_hash = await self._passwords.hash(password)
        async with self._db.transaction() as session:
            user = await self._users.add(session, NewUser(username, role))
            await repository.add_credential(session, user.id, password_hash)
        log.info("auth.registered", extra={"user_id": user.id, "role": role.value})
        return user

    async def log_in(self, username: str, password: str, client: Client) -> Grant:
        """Open a session.

        Raises InvalidGrant, after the same work, for an unknown name, a wrong password
        and an account that is not active; TooManyAttempts before any work.
        """
        async with self._db.reading() as session:
            user_id, password_hash, is_known = await self._account(
                session, username, client
            )
        guess = await self._throttle.guess(username, client, is_known_there=is_known)
        async with self._throttle.guessing(guess):
            is_right = await self._passwords.verify(password, password_hash)
        if not is_right:
            raise _refused(user_id)
        assert user_id is not None and password_hash is not None
        async with self._db.transaction() as session:
            grant = await self._sessions.open(
                session, user_id, client, verified=password_hash
            )
            if grant is not None:
                await self._throttle.succeeded(session, guess)
        if grant is None:
            raise _refused(user_id)
        log.info("auth.logged_in", extra={"user_id": user_id})
        return grant

    async def _account(
        self, session: AsyncSession, username: str, client: Client
    ) -> tuple[int | None, str | None, bool]:
        """The id, the password hash, and whether it was signed in to from there."""
        user = await self._users.find_by_username(session, username)
        # Of nobody, too: the same statements for every name.
        user_id = 0 if user is None else user.id
        found = await repository.password_hash(session, user_id)
        known = await repository.knows_network(session, user_id, network_hash(client))
        return user_id or None, found, known

    async def change_password(
        self, who: Principal, current: str, new: str, client: Client
    ) -> None:
        """Replace the password; every other session ends with it.

        Raises WrongPassword, Invalid for the new one, PasswordChanged, TooManyAttempts.
        """
        self._passwords.check(new, who.username, field="new_password")
        async with self._db.reading() as session:
            _, old, is_known = await self._account(session, who.username, client)
        guess = await self._throttle.guess(
            who.username, client, is_known_there=is_known
        )
        async with self._throttle.guessing(guess):
            is_right = await self._passwords.verify(current, old)
        if old is None or not is_right:
            raise WrongPassword
        async with self._db.transaction() as session:
            await self._throttle.succeeded(session, guess)
        if await self._passwords.verify(new, old):
            where = ("body", "new_password")
            message = "Must differ from the current password."
            raise Invalid(FieldError(where, "same_password", message))
        made = await self._passwords.hash(new)
        async with self._db.transaction() as session:
            await repository.lock_account(session, who.user_id)
            if not await repository.replace_password_hash(
                session, who.user_id, old=old, new=made
            ):
                raise PasswordChanged
            await repository.revoke_sessions(session, who.user_id, keep=who.session_id)
        log.info("auth.password_changed", extra={"user_id": who.user_id})

    async def set_role(self, username: str, role: Role) -> User:
        """For operators only. Raises UserNotFound, LastAdmin."""
        async with self._db.transaction() as session:
            user = await self._users.find_by_username(session, username)
            if user is None:
                raise UserNotFound
            user = await self._users.set_role(session, user.id, role)
        log.info("auth.role_set", extra={"user_id": user.id, "role": role.value})
        return user


def _refused(user_id: int | None) -> InvalidGrant:
    log.info("auth.refused", extra={"user_id": user_id})
    return InvalidGrant()
