"""Statements about users; each returns rows or None."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from modules.users.models import UserRow
from modules.users.public import NewUser, Role, username_key

_COLUMNS = (
    UserRow.id,
    UserRow.username,
    UserRow.role,
    UserRow.is_active,
    UserRow.created_at,
)


async def add(session: AsyncSession, new: NewUser) -> Any:
    """Raises IntegrityError when the name is taken."""
    values = {
        "username": new.username,
        "username_key": username_key(new.username),
        "role": new.role.value,
    }
    statement = insert(UserRow).values(values).returning(*_COLUMNS)
    return (await session.execute(statement)).one()


async def find(session: AsyncSession, user_id: int) -> Any | None:
    statement = select(*_COLUMNS).where(UserRow.id == user_id)
    return (await session.execute(statement)).one_or_none()


async def find_by_key(session: AsyncSession, key: str) -> Any | None:
    statement = select(*_COLUMNS).where(UserRow.username_key == key)
    return (await session.execute(statement)).one_or_none()


async def page(
    session: AsyncSession,
    *,
    after: int | None,
    limit: int,
    name: str | None,
    role: Role | None,
) -> Sequence[Any]:
    """Newest first; `name` matches the beginning of a user name in any case."""
    statement = select(*_COLUMNS).order_by(UserRow.id.desc()).limit(limit)
    if after is not None:
        statement = statement.where(UserRow.id < after)
    if name is not None:
        prefix = username_key(name)
        statement = statement.where(
            UserRow.username_key.startswith(prefix, autoescape=True)
        )
    if role is not None:
        statement = statement.where(UserRow.role == role.value)
    return (await session.execute(statement)).all()


async def rename(session: AsyncSession, user_id: int, username: str) -> Any | None:
    """Raises IntegrityError when the name is taken."""
    statement = (
        update(UserRow)
        .where(UserRow.id == user_id)
        .values(username=username, username_key=username_key(username))
        .returning(*_COLUMNS)
    )
    return (await session.execute(statement)).one_or_none()


async def set_role(session: AsyncSession, user_id: int, role: Role) -> Any | None:
    statement = (
        update(UserRow)
        .where(UserRow.id == user_id)
        .values(role=role.value)
        .returning(*_COLUMNS)
    )
    return (await session.execute(statement)).one_or_none()


async def set_active(session: AsyncSession, user_id: int, is_active: bool) -> bool:
    """Whether there is such a user and this was not so already."""
    statement = (
        update(UserRow)
        .where(UserRow.id == user_id, UserRow.is_active.is_not(is_active))
        .values(is_active=is_active)
        .returning(UserRow.id)
    )
    return (await session.scalar(statement)) is not None


async def lock_admins(session: AsyncSession) -> Sequence[int]:
    """The active administrators' ids, locked so that two of them cannot go at once."""
    admins = select(UserRow.id).where(UserRow.role == Role.ADMIN, UserRow.is_active)
    # NO KEY UPDATE: an administrator's questions may refer to the row meanwhile.
    statement = admins.order_by(UserRow.id).with_for_update(key_share=True)
    return (await session.scalars(statement)).all()


async def remove(session: AsyncSession, user_id: int) -> bool:
    """One DELETE; foreign keys erase what other modules keep of the user."""
    statement = delete(UserRow).where(UserRow.id == user_id).returning(UserRow.id)
    return (await session.scalar(statement)) is not None
