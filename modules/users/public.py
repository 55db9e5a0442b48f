"""What other modules may know of users."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Protocol

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from sqlalchemy import Boolean, String, column, table
from sqlalchemy.ext.asyncio import AsyncSession

from core.db import BigId
from core.errors import Conflict, NotFound
from core.security import ADMIN

ACCOUNTS = table(
    "users",
    column("id", BigId),
    column("username", String),
    column("role", String),
    column("is_active", Boolean),
)
"""For joins of other modules; these columns are contract."""


class Role(StrEnum):
    """What somebody may do."""

    USER = "user"
    ADMIN = ADMIN


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who exists."""

    id: int
    username: str
    role: Role
    is_active: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class NewUser:
    """Somebody about to exist; the user name has been checked."""

    username: str
    role: Role = Role.USER


class UserNotFound(NotFound):
    """There is no such user."""


class UsernameTaken(Conflict):
    """Somebody has this user name already, perhaps in other letter case."""


class LastAdmin(Conflict):
    """The last administrator cannot go."""


ACTIVATED = "security.account_activated"
DEACTIVATED = "security.account_deactivated"
"""What the log calls it, whoever does it."""

OnDeactivation = Callable[[AsyncSession, int], Awaitable[None]]
"""Does a module's part in shutting out the user of an id, in that transaction."""


OnDeletion = Callable[[int], None]
"""Told the id of a user who has just been deleted, with all that was kept of them."""


class Users(Protocol):
    """Everybody who exists. What writes takes the caller's transaction."""

    async def add(self, session: AsyncSession, new: NewUser) -> User:
        """Raises UsernameTaken."""

    async def find_by_username(
        self, session: AsyncSession, username: str
    ) -> User | None:
        """The user of this name in any letter case."""

    async def set_role(self, session: AsyncSession, user_id: int, role: Role) -> User:
        """Raises UserNotFound, or LastAdmin when nobody else could administer."""

    async def set_active(
        self, session: AsyncSession, user_id: int, is_active: bool
    ) -> bool:
        """Whether this was not so already. Raises UserNotFound and LastAdmin."""

    def when_deactivated(self, action: OnDeactivation) -> None:
        """Have `action` take part in every deactivation from now on."""

    def when_deleted(self, action: OnDeletion) -> None:
        """Have `action` told of every deletion on this server from now on."""

    def everybody(self, role: Role | None = None) -> AsyncIterator[User]:
        """All users, newest first; neither all in memory nor a connection held."""


RESERVED = frozenset(
    "admin administrator anonymous api everyone guest me moderator nobody none null"
    " operator owner root security self service staff superuser support sysadmin"
    " system undefined unknown user username vopros webmaster".split()
)
_USERNAME = re.compile(r"[A-Za-z0-9](?:[._-]?[A-Za-z0-9])*", re.ASCII)


def username_key(username: str) -> str:
    """The form in which user names are unique. Folded here: databases' rules differ."""
    return username.casefold()


def _check_shape(username: str) -> str:
    if not _USERNAME.fullmatch(username):
        raise PydanticCustomError(
            "invalid_username",
            "Use Latin letters and digits, with single . _ - between them.",
        )
    if username.isdigit():
        raise PydanticCustomError(
            "invalid_username", "Must not consist of digits only."
        )
    return username


def _refuse_reserved(username: str) -> str:
    if username_key(username) in RESERVED:
        raise PydanticCustomError("reserved_username", "This user name is reserved.")
    return username


OperatorsUsername = Annotated[
    str,
    Field(
        min_length=3,
        max_length=32,
        json_schema_extra={"pattern": f"^{_USERNAME.pattern}$"},
    ),
    AfterValidator(_check_shape),
]
"""A user name that an operator may give; reserved ones too."""

Username = Annotated[OperatorsUsername, AfterValidator(_refuse_reserved)]
"""A user name that anybody may take: ASCII, so that no two look alike."""
