"""How auth plugs into the application."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

from core.layers import Finding
from core.module import Module, ModuleContext
from core.settings import Settings
from modules.auth.settings import AuthSettings

_SWEPT_EVERY_SECONDS = 60 * 60


def check(settings: Settings) -> Iterator[Finding]:
    """Refuse a missing or a weak signing secret."""
    from modules.auth.secret import check

    return check(settings)


@asynccontextmanager
async def lifespan(context: ModuleContext) -> AsyncIterator[None]:
    """Offer the `Authenticator` to everybody and `Auth` to the routes."""
    # Imported here, so that the command line's help stays fast.
    from core.periodic import repeating
    from core.security import Authenticator
    from modules.auth.passwords import Passwords
    from modules.auth.secret import signing_secret
    from modules.auth.service import Auth
    from modules.auth.sessions import Sessions
    from modules.auth.throttle import Throttle
    from modules.auth.tokens import AccessTokens
    from modules.users.public import Users

    settings = context.settings.section(AuthSettings)
    tokens = AccessTokens(settings, signing_secret(context.settings))
    passwords = Passwords(settings)
    throttle = Throttle(context.database, settings)
    sessions = Sessions(context.database, tokens, settings, context.clock)
    users = context.services.get(Users)
    auth = Auth(context.database, users, passwords, sessions, throttle)
    context.services.add(Authenticator, sessions)
    context.services.add(Sessions, sessions)
    context.services.add(Throttle, throttle)
    context.services.add(Auth, auth)

    async def sweep() -> None:
        await sessions.sweep()
        await throttle.sweep()

    async with AsyncExitStack() as stack:
        stack.callback(passwords.close)
        if context.is_serving:
            sweeping = repeating("auth.sweep", sweep, seconds=_SWEPT_EVERY_SECONDS)
            await stack.enter_async_context(sweeping)
        yield


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
