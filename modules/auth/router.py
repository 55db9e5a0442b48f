"""Making an account, signing in and changing the password."""

from typing import Annotated

from fastapi import APIRouter, Depends, Form

from core.db import Busy, DatabaseUnavailable
from core.problems import problem_responses
from core.security import CurrentUser
from core.services import service
from modules.auth.registration import Registration, RegistrationClosed
from modules.auth.schemas import (
    ChangePassword,
    Register,
    Registered,
    Token,
    TokenForm,
)
from modules.auth.service import (
    Auth,
    InvalidGrant,
    PasswordChanged,
    UnsupportedGrantType,
    WrongPassword,
)
from modules.users.public import UsernameTaken

router = APIRouter(prefix="/auth", tags=["auth"])
TheAuth = Annotated[Auth, Depends(service(Auth))]


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
        UsernameTaken, RegistrationClosed, DatabaseUnavailable, Busy
    ),
)
async def register(body: Register, auth: TheAuth) -> Registered:
    """Make an account for yourself; sign in with it by **Authorize**.

    A password that is among the most common ones, or only repeats your user name, is
    refused. Nobody becomes an administrator here.
    """
    password = body.password.get_secret_value()
    return Registered.model_validate(await auth.register(body.username, password))


@router.post(
    "/token",
    summary="Get an access token",
    responses=problem_responses(
        InvalidGrant, UnsupportedGrantType, DatabaseUnavailable, Busy
    ),
)
async def log_in(form: Annotated[TokenForm, Form()], auth: TheAuth) -> Token:
    """Sign in with user name and password (OAuth2 password form).

    The answer is the same for an unknown name and a wrong password.
    """
    if form.grant_type != "password":
        raise UnsupportedGrantType
    grant = await auth.log_in(form.username, form.password.get_secret_value())
    lifetime = int(grant.lifetime.total_seconds())
    return Token(access_token=grant.access_token, expires_in=lifetime)


@router.put(
    "/password",
    status_code=204,
    summary="Change your password",
    responses=problem_responses(WrongPassword, PasswordChanged),
)
async def change_password(
    body: ChangePassword, who: CurrentUser, auth: TheAuth
) -> None:
    """Change your password. Every other session of yours ends; this one goes on."""
    await auth.change_password(
        who,
        body.current_password.get_secret_value(),
        body.new_password.get_secret_value(),
    )
