"""What only an operator may do with accounts; no route leads here."""

import logging
from collections.abc import AsyncIterator
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncSession

from core.db import Database
from modules.auth import repository
from modules.auth.passwords import Passwords
from modules.auth.throttle import Throttle
from modules.users.public import (
    ACTIVATED,
    DEACTIVATED,
    NewUser,
    Role,
    User,
    UserNotFound,
    Users,
)

log = logging.getLogger(__name__)


class Accounts:
    """Everybody's accounts, in the hands of whoever runs the service."""

    def __init__(
        self, db: Database, users: Users, passwords: Passwords, throttle: Throttle
    ) -> None:
        self._db = db
        self._users = users
        self._passwords = passwords
        self._throttle = throttle

    async def create_admin(self, username: str, password: str) -> User:
        """Raises Invalid for the password, UsernameTaken."""
        self._passwords.check(password, username)
        password_hash = await self._passwords.hash(password)
        async with self._db.transaction() as session:
            user = await self._users.add(session, NewUser(username, Role.ADMIN))
            await repository.add_credential(session, user.id, password_hash)
        _log("security.account_created", user, role=user.role.value)
        return user

    async def set_role(self, username: str, role: Role) -> User:
        """Raises UserNotFound, LastAdmin."""
        async with self._db.transaction() as session:
            user = await self._find(session, username)
            user = await self._users.set_role(session, user.id, role)
        _log("security.role_set", user, role=role.value)
        return user

    async def set_active(self, username: str, is_active: bool) -> User:
        """Let somebody in, or shut them out and end their sessions.

        Raises UserNotFound, LastAdmin.
        """
        async with self._db.transaction() as session:
            user = await self._find(session, username)
            is_new = await self._users.set_active(session, user.id, is_active)
        if is_new:
            _log(ACTIVATED if is_active else DEACTIVATED, user)
        return replace(user, is_active=is_active)

    async def reset_password(self, username: str, password: str) -> User:
        """Give somebody another password; all of their sessions end with the old one.

        Raises UserNotFound, Invalid for the password.
        """
        async with self._db.reading() as session:
            user = await self._find(session, username)
        self._passwords.check(password, user.username)
        password_hash = await self._passwords.hash(password)
        async with self._db.transaction() as session:
            if not await repository.set_password_hash(session, user.id, password_hash):
                raise UserNotFound
            await repository.revoke_sessions(session, user.id)
            await self._throttle.pardon(session, user.id)
        _log("security.password_reset", user)
        return user

    def everybody(self, role: Role | None = None) -> AsyncIterator[User]:
        """All users, newest first; not all of them are in memory at a time."""
        return self._users.everybody(role)

    async def _find(self, session: AsyncSession, username: str) -> User:
        user = await self._users.find_by_username(session, username)
        if user is None:
            raise UserNotFound
        return user


def _log(event: str, user: User, **fields: str) -> None:
    log.info(event, extra={"user_id": user.id, "by": "operator"} | fields)
