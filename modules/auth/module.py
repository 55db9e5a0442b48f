"""How auth plugs into the application."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from core.layers import Finding
from core.module import Module, ModuleContext
from core.settings import Settings
from modules.auth.settings import AuthSettings


def check(settings: Settings) -> Iterator[Finding]:
    """Refuse a missing or a weak signing secret."""
    from modules.auth.secret import check

    return check(settings)


@asynccontextmanager
async def lifespan(context: ModuleContext) -> AsyncIterator[None]:
    """Offer `Authenticator` to everybody, `Auth` to routes, `Accounts` to commands."""
    # Imported here, so that the command line's help stays fast.
    from core.security import Authenticator
    from modules.auth import repository
    from modules.auth.accounts import Accounts
    from modules.auth.passwords import Passwords
    from modules.auth.secret import signing_secret
    from modules.auth.service import Auth
    from modules.auth.tokens import AccessTokens
    from modules.users.public import Users

    settings = context.settings.section(AuthSettings)
    tokens = AccessTokens(settings, signing_secret(context.settings))
    passwords = Passwords(settings)
    users = context.services.get(Users)
    auth = Auth(context.database, users, passwords, tokens, context.clock)
    context.services.add(Authenticator, auth)
    context.services.add(Auth, auth)
    context.services.add(Accounts, Accounts(context.database, users, passwords))
    # For good: an account that is let in again does not find its old sessions alive.
    users.when_deactivated(repository.revoke_sessions)
    try:
        yield
    finally:
        passwords.close()


MODULE = Module(
    name="auth",
    requires=("users",),
    router="modules.auth.router",
    commands="modules.auth.commands",
    models="modules.auth.models",
    sections={"auth": AuthSettings},
    check=check,
    lifespan=lifespan,
)
