"""Your own account, and what administrators see of everybody's."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from core.export import Download, Exports
from core.pages import CursorText, Page, PageLimit
from core.problems import problem_responses
from core.security import CurrentAdmin, CurrentUser, log_admin_read
from core.services import service
from core.text import Id, SafeText
from modules.users.public import LastAdmin, Role, UsernameTaken, UserNotFound
from modules.users.schemas import (
    ChangeMe,
    ChangeUser,
    Exported,
    UserListed,
    UserRead,
)
from modules.users.service import NotOneself, StoredUsers

router = APIRouter(prefix="/users", tags=["users"])
Everybody = Annotated[StoredUsers, Depends(service(StoredUsers))]
Everything = Annotated[Exports, Depends(service(Exports))]


@router.get("/me", summary="See your account")
async def get_me(who: CurrentUser, users: Everybody) -> UserRead:
    """Your account as it is now; a password is never part of it."""
    return UserRead.model_validate(await users.own(who.user_id))


@router.patch(
    "/me",
    summary="Change your user name",
    responses=problem_responses(UsernameTaken),
)
async def update_me(body: ChangeMe, who: CurrentUser, users: Everybody) -> UserRead:
    """Change your user name; leave it out and nothing changes.

    Of two changes at once the last one wins. Access tokens stay valid: they know you
    by number, not by name.
    """
    if body.username is None:
        return UserRead.model_validate(await users.own(who.user_id))
    return UserRead.model_validate(await users.rename(who.user_id, body.username))


@router.delete(
    "/me",
    status_code=204,
    summary="Delete your account",
    responses=problem_responses(LastAdmin),
)
async def delete_me(who: CurrentUser, users: Everybody) -> None:
    """Erase your account, your questions and your sessions, at once and for good.

    The access token is refused from then on. The last administrator cannot leave.
    """
    await users.delete(who.user_id)


@router.get("/me/export", summary="Export your data", response_model=Exported)
async def export_me(
    who: CurrentUser, users: Everybody, everything: Everything
) -> Response:
    """Download all that is kept of you as one JSON file: your account, every session
    and every question, newest first, and what is counted of you. No password, token or
    hash is among it.

    The file is sent while it is read from the database. **A file without
    `"complete": true` at its end is incomplete**: the connection broke, something
    failed here, or the account was deleted meanwhile.
    """
    pieces = everything.write(who.user_id, still_there=users.own)
    return Download("vopros-export.json", pieces)


@router.get("", summary="List users")
async def list_users(
    who: CurrentAdmin,
    users: Everybody,
    limit: PageLimit = 50,
    cursor: CursorText = None,
    name: Annotated[
        SafeText | None,
        Query(max_length=32, description="How the user name begins, in any case."),
    ] = None,
    role: Annotated[Role | None, Query(description="Only users of this role.")] = None,
) -> Page[UserListed]:
    """Everybody, newest first. For administrators."""
    found, following = await users.page(
        cursor=cursor, limit=limit, name=name, role=role
    )
    log_admin_read(who, "users", (user.id for user in found))
    items = [UserListed.model_validate(user) for user in found]
    return Page(items=items, next_cursor=following)


@router.get(
    "/{user_id}",
    summary="See a user",
    responses=problem_responses(UserNotFound),
)
async def get_user(user_id: Id, who: CurrentAdmin, users: Everybody) -> UserListed:
    """One user. For administrators."""
    user = await users.get(user_id)
    log_admin_read(who, "user", [user.id])
    return UserListed.model_validate(user)


@router.patch(
    "/{user_id}",
    summary="Shut a user out, or let them in again",
    responses=problem_responses(UserNotFound, NotOneself, LastAdmin),
)
async def update_user(
    user_id: Id, body: ChangeUser, who: CurrentAdmin, users: Everybody
) -> UserListed:
    """Shut a user out, or let them in again. For administrators; not for oneself.

    Whoever is shut out is nobody from the next request on, and all of their sessions
    are over for good: let in again, they sign in again. A question that is being
    answered at that moment is still answered and stored.
    """
    user = await users.change(user_id, is_active=body.is_active, admin_id=who.user_id)
    log_admin_read(who, "user", [user.id])
    return UserListed.model_validate(user)
