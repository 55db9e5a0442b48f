"""How auth plugs into the application."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from core.layers import Finding
from core.module import Module, ModuleContext, Record
from core.settings import Settings
from modules.auth.settings import AuthSettings

log = logging.getLogger(__name__)

_SWEPT_EVERY_SECONDS = 60 * 60


def check(settings: Settings) -> Iterator[Finding]:
    """Refuse a missing or a weak signing secret."""
    from modules.auth.secret import check

    return check(settings)


@asynccontextmanager
async def lifespan(context: ModuleContext) -> AsyncIterator[None]:
    """Offer `Authenticator` to everybody, `Auth` to routes, `Accounts` to commands."""
    # Imported here, so that the command line's help stays fast.
    from core.periodic import repeating
    from core.security import Authenticator
    from modules.auth import repository
    from modules.auth.accounts import Accounts
    from modules.auth.passwords import Passwords
    from modules.auth.registration import Registration
    from modules.auth.secret import signing_keys
    from modules.auth.service import Auth
    from modules.auth.sessions import Sessions
    from modules.auth.throttle import Throttle
    from modules.auth.tokens import AccessTokens
    from modules.users.public import Users

    settings = context.settings.section(AuthSettings)
    tokens = AccessTokens(settings, signing_keys(context.settings))
    passwords = Passwords(settings)
    throttle = Throttle(context.database, settings)
    sessions = Sessions(context.database, tokens, settings, context.clock)
    users = context.services.get(Users)
    auth = Auth(context.database, users, passwords, sessions, throttle)
    context.services.add(Authenticator, sessions)
    context.services.add(Sessions, sessions)
    context.services.add(Throttle, throttle)
    context.services.add(Auth, auth)
    context.services.add(Registration, Registration(settings))
    accounts = Accounts(context.database, users, passwords, throttle)
    context.services.add(Accounts, accounts)
    # For good: an account that is let in again does not find its old sessions alive.
    users.when_deactivated(repository.revoke_sessions)

    async with AsyncExitStack() as stack:
        stack.callback(passwords.close)
        if context.is_serving:
            log.info("auth.registration", extra={"mode": settings.registration})
            # Apart: one that fails again and again must not hinder the other.
            for what, sweep in (
                ("auth.sweep_sessions", sessions.sweep),
                ("auth.sweep_attempts", throttle.sweep),
            ):
                sweeping = repeating(what, sweep, seconds=_SWEPT_EVERY_SECONDS)
                await stack.enter_async_context(sweeping)
        yield


async def every_session(
    context: ModuleContext, user_id: int
) -> AsyncGenerator[Record, None]:
    """All sessions of a user that are kept, ended ones too, newest first."""
    from core.pages import every
    from modules.auth import repository

    async def read(last: Any | None) -> Sequence[Any]:
        async with context.database.reading() as session:
            return await repository.sessions_before(session, user_id, last, limit=500)

    async for row in every(read):
        yield row._asdict()


MODULE = Module(
    name="auth",
    requires=("users",),
    router="modules.auth.router",
    commands="modules.auth.commands",
    models="modules.auth.models",
    sections={"auth": AuthSettings},
    check=check,
    lifespan=lifespan,
    authenticates=True,
    personal_data={"sessions": every_session},
)
