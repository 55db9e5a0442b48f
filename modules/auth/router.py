"""Making an account, signing in, and what becomes of a session.

An access token is good for minutes. When a call answers 401, `POST /auth/refresh` gets
the next one for the `refresh_token` that came with it, and another refresh token: each
is good once. Sending an older one again ends the session: it was copied.

`POST /auth/logout` ends the session on the server, at once and everywhere. The page's
own **Authorize > Logout** only forgets the access token.
"""

from dataclasses import asdict
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Form

from core.client import CurrentClient
from core.db import Busy, DatabaseUnavailable
from core.problems import problem_responses
from core.security import CurrentUser
from core.services import service
from modules.auth.registration import Registration, RegistrationClosed
from modules.auth.schemas import (
    ChangePassword,
    Refresh,
    Register,
    Registered,
    SessionRead,
    Token,
    TokenForm,
)
from modules.auth.service import (
    Auth,
    PasswordChanged,
    UnsupportedGrantType,
    WrongPassword,
)
from modules.auth.sessions import (
    Grant,
    InvalidGrant,
    RefreshRefused,
    SessionNotFound,
    Sessions,
)
from modules.auth.throttle import TooManyAttempts
from modules.users.public import UsernameTaken

router = APIRouter(prefix="/auth", tags=["auth"])
TheAuth = Annotated[Auth, Depends(service(Auth))]
TheSessions = Annotated[Sessions, Depends(service(Sessions))]


async def _admit(
    registration: Annotated[Registration, Depends(service(Registration))],
) -> None:
    # As a dependency it answers before anybody looks at what was sent.
    registration.admit()


@router.post(
    "/register",
    status_code=201,
    summary="Make an account",
    dependencies=[Depends(_admit)],
    responses=problem_responses(
        UsernameTaken, RegistrationClosed, TooManyAttempts, DatabaseUnavailable, Busy
    ),
)
async def register(body: Register, client: CurrentClient, auth: TheAuth) -> Registered:
    """Make an account for yourself; sign in with it by **Authorize**.

    A password that is among the most common ones, or only repeats your user name, is
    refused. Nobody becomes an administrator here.
    """
    password = body.password.get_secret_value()
    user = await auth.sign_up(body.username, password, client)
    return Registered.model_validate(user)


@router.post(
    "/token",
    summary="Get an access token",
    responses=problem_responses(
        InvalidGrant,
        UnsupportedGrantType,
        TooManyAttempts,
        DatabaseUnavailable,
        Busy,
    ),
)
async def log_in(
    form: Annotated[TokenForm, Form()], client: CurrentClient, auth: TheAuth
) -> Token:
    """Sign in with user name and password (OAuth2 password form): a session begins.

    The answer is the same for an unknown name and a wrong password. After some wrong
    ones there is a wait, which grows.
    """
    if form.grant_type != "password":
        raise UnsupportedGrantType
    password = form.password.get_secret_value()
    return _token(await auth.log_in(form.username, password, client))


def _token(grant: Grant) -> Token:
    return Token(
        access_token=grant.access_token,
        expires_in=int(grant.lifetime.total_seconds()),
        refresh_token=grant.refresh_token,
    )


@router.post(
    "/refresh",
    summary="Get the next access token",
    responses=problem_responses(RefreshRefused, DatabaseUnavailable, Busy),
)
async def refresh_token(body: Refresh, sessions: TheSessions) -> Token:
    """Go on with a session: the refresh token is used up, and the answer has the next.

    **One that was used before ends its session**: somebody has copied it. A session
    that is not refreshed ends after 14 days, and after 90 days in any case; the
    operator may have set other limits.
    """
    return _token(await sessions.refresh(body.refresh_token.get_secret_value()))


@router.get("/sessions", summary="See your sessions")
async def list_sessions(who: CurrentUser, sessions: TheSessions) -> list[SessionRead]:
    """Your sessions that have not ended, those used last first; at most 1,000."""
    return [
        SessionRead(**asdict(found), is_current=found.id == who.session_id)
        for found in await sessions.newest(who.user_id)
    ]


@router.delete(
    "/sessions/{session_id}",
    status_code=204,
    summary="End a session",
    responses=problem_responses(SessionNotFound),
)
async def end_session(
    session_id: UUID, who: CurrentUser, sessions: TheSessions
) -> None:
    """End one of your sessions: its tokens are refused from then on."""
    await sessions.end(who.user_id, session_id)


@router.post("/logout", status_code=204, summary="End this session")
async def log_out(who: CurrentUser, sessions: TheSessions) -> None:
    """End the session of this call: its tokens are refused from then on."""
    await sessions.log_out(who)


@router.post("/logout-all", status_code=204, summary="End all your sessions")
async def log_out_everywhere(who: CurrentUser, sessions: TheSessions) -> None:
    """End every session of yours, this one too; sign in again with your password."""
    await sessions.end_all(who.user_id)


@router.put(
    "/password",
    status_code=204,
    summary="Change your password",
    responses=problem_responses(WrongPassword, PasswordChanged, TooManyAttempts),
)
async def change_password(
    body: ChangePassword, who: CurrentUser, client: CurrentClient, auth: TheAuth
) -> None:
    """Change your password. Every other session of yours ends; this one goes on."""
    await auth.change_password(
        who,
        body.current_password.get_secret_value(),
        body.new_password.get_secret_value(),
        client,
    )
