"""How users plug into the application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from core.module import Module, ModuleContext


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


MODULE = Module(
    name="users",
    router="modules.users.router",
    models="modules.users.models",
    lifespan=lifespan,
)
