"""How users plug into the application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from core.module import Module, ModuleContext, Record


@asynccontextmanager
async def lifespan(context: ModuleContext) -> AsyncIterator[None]:
    """Offer `Users` to other modules and `StoredUsers` to the routes."""
    # Imported here, so that the command line's help stays fast.
    from modules.users.public import Users
    from modules.users.service import StoredUsers

    users = StoredUsers(context.database)
    context.services.add(Users, users)
    context.services.add(StoredUsers, users)
    yield


async def profile(context: ModuleContext, user_id: int) -> Record:
    """The account; raises InvalidToken when it was deleted meanwhile."""
    from modules.users.schemas import UserListed
    from modules.users.service import StoredUsers

    user = await context.services.get(StoredUsers).own(user_id)
    return UserListed.model_validate(user).model_dump()


MODULE = Module(
    name="users",
    router="modules.users.router",
    models="modules.users.models",
    lifespan=lifespan,
    personal_data={"profile": profile},
)
