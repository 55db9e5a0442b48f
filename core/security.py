"""Who is calling: the port that a module fills, and the dependencies routes use.

The kernel does not know how identity is proved. Whichever module does offers an
`Authenticator`; every protected route asks it on every request.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Protocol
from uuid import UUID

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.openapi.models import OAuthFlowPassword, OAuthFlows
from fastapi.routing import RouteContext, iter_route_contexts
from fastapi.security import OAuth2
from starlette.requests import HTTPConnection
from starlette.routing import BaseRoute

from core.errors import Forbidden, Unauthenticated, Unavailable
from core.services import Services

log = logging.getLogger(__name__)

ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller, as the database knows them at this very request."""

    user_id: int
    username: str
    role: str
    session_id: UUID

    @property
    def is_admin(self) -> bool:
        return self.role == ADMIN


class TokenMissing(Unauthenticated):
    """An access token is needed."""


class InvalidToken(Unauthenticated):
    """The access token is not valid, or no longer."""


class AdminsOnly(Forbidden):
    """This is for administrators."""


class Authenticator(Protocol):
    """Turns an access token into a caller."""

    token_url: str
    """Where people get a token by user name and password (RFC 6749, 4.3)."""

    async def authenticate(self, token: str) -> Principal:
        """Raises InvalidToken, or Unavailable when it cannot be checked now."""


class _Bearer(OAuth2):
    """RFC 6750 bearer tokens; the document's token URL is filled in by `docs.py`."""

    async def __call__(  # type: ignore[override]
        self, request: HTTPConnection
    ) -> Principal:
        """The caller of this request."""
        services: Services = request.app.state.services
        authenticator = services.get(Authenticator)
        principal = await authenticator.authenticate(_token(request))
        request.state.user_id = principal.user_id
        return principal


def _token(request: HTTPConnection) -> str:
    given = request.headers.getlist("authorization")
    scheme, _, token = "".join(given[:1]).partition(" ")
    if not scheme and len(given) < 2:
        raise TokenMissing
    # Of two headers, a proxy in front may have looked at the other one.
    if len(given) != 1 or scheme.lower() != "bearer" or not token.strip():
        raise InvalidToken
    return token.strip()


BEARER_SCHEME = "Account"
current_user = _Bearer(
    flows=OAuthFlows(password=OAuthFlowPassword(tokenUrl="")),
    scheme_name=BEARER_SCHEME,
    description="Sign in with your user name and password.",
)


async def current_admin(
    request: Request, principal: Annotated[Principal, Depends(current_user)]
) -> Principal:
    """The caller of this request, who is an administrator."""
    if not principal.is_admin:
        # The template of the path: what was put into it may be anything.
        route = getattr(request.scope.get("route"), "path", None)
        fields = {"user_id": principal.user_id, "method": request.method}
        log.warning("security.denied", extra=fields | {"route": route})
        raise AdminsOnly
    return principal


async def is_administrator(request: Request) -> bool:
    """Whether the caller, who need not be known here, is an administrator."""
    services: Services = request.app.state.services
    if Authenticator not in services or "authorization" not in request.headers:
        return False
    try:
        return (await current_user(request)).is_admin
    except (Unauthenticated, Unavailable):
        return False


def log_admin_read(who: Principal, what: str, user_ids: Iterable[int]) -> None:
    """Tell the log whose data `who` is about to be shown; one's own is no news."""
    others = sorted({*user_ids} - {who.user_id})
    if others:
        fields = {"admin_id": who.user_id, "what": what, "user_ids": others}
        log.info("security.admin_read", extra=fields)


def depends_on(route: RouteContext, dependency: object) -> bool:
    """Whether a route has `dependency`, such as `current_admin`, at any depth."""
    dependant: Dependant | None = getattr(route, "dependant", None)
    waiting = [dependant] if dependant else []
    while waiting:
        below = waiting.pop()
        if below.call is dependency:
            return True
        waiting += below.dependencies
    return False


def first_protected(routes: Iterable[BaseRoute]) -> str | None:
    """Return the path of a route that is for known callers only, None without one."""
    for route in iter_route_contexts(list(routes)):
        if depends_on(route, current_user):
            return route.path
    return None


CurrentUser = Annotated[Principal, Depends(current_user)]
CurrentAdmin = Annotated[Principal, Depends(current_admin)]
