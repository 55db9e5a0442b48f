"""Users kept in the database."""

import logging
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from core.db import Database, unique
from core.errors import Conflict
from core.pages import cut_page, decode_cursor, encode_cursor
from core.security import InvalidToken
from modules.users import repository
from modules.users.public import (
    ACTIVATED,
    DEACTIVATED,
    LastAdmin,
    NewUser,
    OnDeactivation,
    OnDeletion,
    Role,
    User,
    UsernameTaken,
    UserNotFound,
    username_key,
)

log = logging.getLogger(__name__)

_CURSOR = "users"
_AT_A_TIME = 1_000


class NotOneself(Conflict):
    """This cannot be done to one's own account."""


class StoredUsers:
    """`Users` over the application's database, with what its own routes need."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._on_deactivation: list[OnDeactivation] = []
        self._on_deletion: list[OnDeletion] = []

    async def add(self, session: AsyncSession, new: NewUser) -> User:
        """Add somebody. Raises UsernameTaken, and leaves the transaction usable."""
        with unique(UsernameTaken):
            async with session.begin_nested():
                row = await repository.add(session, new)
        return _user(row)

    async def find_by_username(
        self, session: AsyncSession, username: str
    ) -> User | None:
        """The user of this name in any letter case."""
        row = await repository.find_by_key(session, username_key(username))
        return None if row is None else _user(row)

    async def set_role(self, session: AsyncSession, user_id: int, role: Role) -> User:
        """Raises UserNotFound, or LastAdmin when nobody else could administer."""
        if role is not Role.ADMIN:
            await self._keep_an_admin(session, without=user_id)
        row = await repository.set_role(session, user_id, role)
        if row is None:
            raise UserNotFound
        return _user(row)

    async def set_active(
        self, session: AsyncSession, user_id: int, is_active: bool
    ) -> bool:
        """Whether this was not so already. Raises UserNotFound and LastAdmin."""
        if not is_active:
            await self._keep_an_admin(session, without=user_id)
        if await repository.set_active(session, user_id, is_active):
            if not is_active:
                for action in self._on_deactivation:
                    await action(session, user_id)
            return True
        if await repository.find(session, user_id) is None:
            raise UserNotFound
        return False

    def when_deactivated(self, action: OnDeactivation) -> None:
        """Have `action` take part in every deactivation from now on."""
        self._on_deactivation.append(action)

    def when_deleted(self, action: OnDeletion) -> None:
        """Have `action` told of every deletion on this server from now on."""
        self._on_deletion.append(action)

    async def everybody(self, role: Role | None = None) -> AsyncIterator[User]:
        """All users, newest first; neither all in memory nor a connection held."""
        after = None
        while True:
            async with self._db.reading() as session:
                rows = await repository.page(
                    session, after=after, limit=_AT_A_TIME, name=None, role=role
                )
            for row in rows:
                yield _user(row)
            if len(rows) < _AT_A_TIME:
                return
            after = rows[-1].id

    async def change(
        self, user_id: int, *, is_active: bool | None, admin_id: int
    ) -> User:
        """Shut somebody out, or let them in again; None leaves them as they are.

        Raises UserNotFound, NotOneself, LastAdmin.
        """
        if is_active is False and user_id == admin_id:
            raise NotOneself
        if is_active is not None:
            async with self._db.transaction() as session:
                is_new = await self.set_active(session, user_id, is_active)
            if is_new:
                fields = {"user_id": user_id, "by": "admin", "admin_id": admin_id}
                log.info(ACTIVATED if is_active else DEACTIVATED, extra=fields)
        return await self.get(user_id)

    async def get(self, user_id: int) -> User:
        """Raises UserNotFound."""
        async with self._db.reading() as session:
            row = await repository.find(session, user_id)
        if row is None:
            raise UserNotFound
        return _user(row)

    async def own(self, user_id: int) -> User:
        """The caller's account. Raises InvalidToken when it was deleted meanwhile."""
        try:
            return await self.get(user_id)
        except UserNotFound:
            raise InvalidToken from None

    async def page(
        self, *, cursor: str | None, limit: int, name: str | None, role: Role | None
    ) -> tuple[list[User], str | None]:
        """Users, newest first, and the cursor of the next page if there is one."""
        place = decode_cursor(_CURSOR, cursor)
        after = None if place is None else place[0]
        async with self._db.reading() as session:
            rows = await repository.page(
                session, after=after, limit=limit + 1, name=name, role=role
            )
        shown, has_more = cut_page(rows, limit)
        following = encode_cursor(_CURSOR, shown[-1].id) if has_more else None
        return [_user(row) for row in shown], following

    async def rename(self, user_id: int, username: str) -> User:
        """Change one's user name; the last of two changes wins.

        Raises UsernameTaken, or InvalidToken for an account deleted meanwhile.
        """
        with unique(UsernameTaken):
            async with self._db.transaction() as session:
                row = await repository.rename(session, user_id, username)
        if row is None:
            raise InvalidToken
        return _user(row)

    async def delete(self, user_id: int) -> None:
        """Erase a user and all that any module keeps of them. Raises LastAdmin."""
        async with self._db.transaction() as session:
            await self._keep_an_admin(session, without=user_id)
            is_gone = await repository.remove(session, user_id)
        if is_gone:
            fields = {"user_id": user_id, "by": "self"}
            log.info("security.account_deleted", extra=fields)
            for action in self._on_deletion:
                action(user_id)

    async def _keep_an_admin(self, session: AsyncSession, *, without: int) -> None:
        if list(await repository.lock_admins(session)) == [without]:
            raise LastAdmin


def _user(row: Any) -> User:
    return User(row.id, row.username, Role(row.role), row.is_active, row.created_at)
