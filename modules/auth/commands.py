"""`vopros accounts`: what only an operator may do; works beside a running server."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from core.cli import refusals, run
from core.errors import StartRefused

if TYPE_CHECKING:
    from modules.auth.accounts import Accounts
    from modules.users.public import User

T = TypeVar("T")
Name = Annotated[str, typer.Argument(help="The user name.", metavar="NAME")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(help="A file with the password; else a prompt or stdin."),
]
_OPENING = ("auth",)
# Of the widest that can be there; nobody has to wait for the last user to know.
_COLUMNS = "{:<10}  {:<32}  {:<5}  {:<6}  {}"
commands = typer.Typer(
    name="accounts", help="Look after accounts.", no_args_is_help=True
)


@commands.command("create-admin")
def create_admin(
    context: typer.Context, name: Name, password_file: PasswordFile = None
) -> None:
    """Make an administrator's account."""
    settings = context.obj.settings(opening=_OPENING)
    from modules.users.public import OperatorsUsername

    with refusals():
        username = _checked(OperatorsUsername, name, "user name")
        password = _checked_password(password_file)
    user = _do(settings, lambda accounts: accounts.create_admin(username, password))
    typer.echo(f"created administrator {user.username} with id {user.id}")


@commands.command("set-role")
def set_role(
    context: typer.Context,
    name: Name,
    role: Annotated[str, typer.Argument(help="user or admin")],
) -> None:
    """Make somebody an administrator, or an ordinary user again."""
    settings = context.obj.settings(opening=_OPENING)
    with refusals():
        wanted = _checked_role(role)
    user = _do(settings, lambda accounts: accounts.set_role(name, wanted))
    typer.echo(f"{user.username} is now {role}")


@commands.command()
def deactivate(context: typer.Context, name: Name) -> None:
    """Shut somebody out; all of their sessions end for good."""
    settings = context.obj.settings(opening=_OPENING)
    user = _do(settings, lambda accounts: accounts.set_active(name, False))
    typer.echo(f"{user.username} is now inactive")


@commands.command()
def activate(context: typer.Context, name: Name) -> None:
    """Let somebody in again who was shut out."""
    settings = context.obj.settings(opening=_OPENING)
    user = _do(settings, lambda accounts: accounts.set_active(name, True))
    typer.echo(f"{user.username} is now active")


@commands.command("reset-password")
def reset_password(
    context: typer.Context, name: Name, password_file: PasswordFile = None
) -> None:
    """Give somebody another password; all of their sessions end."""
    settings = context.obj.settings(opening=_OPENING)
    with refusals():
        password = _checked_password(password_file)
    user = _do(settings, lambda accounts: accounts.reset_password(name, password))
    typer.echo(f"{user.username} has a new password and no sessions")


@commands.command("list")
def list_accounts(
    context: typer.Context,
    role: Annotated[str | None, typer.Option(help="Only user, or only admin.")] = None,
) -> None:
    """List everybody, newest first."""
    settings = context.obj.settings(opening=_OPENING)
    with refusals():
        wanted = None if role is None else _checked_role(role)

    async def show(accounts: "Accounts") -> None:
        typer.echo(_COLUMNS.format("id", "name", "role", "active", "created"))
        async for user in accounts.everybody(wanted):
            typer.echo(_line(user))

    _do(settings, show)


def _line(user: "User") -> str:
    created = user.created_at.isoformat(timespec="seconds")
    is_active = "yes" if user.is_active else "no"
    return _COLUMNS.format(user.id, user.username, user.role, is_active, created)


def _checked_role(role: str) -> Any:
    from modules.users.public import Role

    if role not in list(Role):
        raise StartRefused(f"the role must be one of {', '.join(Role)}")
    return Role(role)


def _checked_password(file: Path | None) -> str:
    from modules.auth.schemas import Password

    password = _checked(Password, _read_password(file), "password")
    secret: str = password.get_secret_value()
    return secret


def _checked(kind: Any, value: str, what: str) -> Any:
    """`value` as the API itself would take it; StartRefused says what is wrong."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as exc:
        raise StartRefused(f"{what}: {exc.errors()[0]['msg']}") from None


def _read_password(file: Path | None) -> str:
    """From a file, a prompt or standard input; never from the command line."""
    if file is None and sys.stdin.isatty():
        prompted: str = typer.prompt(
            "Password", hide_input=True, confirmation_prompt=True
        )
        return prompted
    try:
        given = sys.stdin.buffer.readline() if file is None else file.read_bytes()
        return given.decode("utf-8-sig").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        place = file or "standard input"
        raise StartRefused(f"{place}: the password cannot be read") from exc


def _do(settings: Any, work: "Callable[[Accounts], Awaitable[T]]") -> T:
    """Do `work` to its end, or say in a line why not."""

    async def do() -> T:
        async with _opened(settings) as accounts:
            return await work(accounts)

    return run(do)


@asynccontextmanager
async def _opened(settings: Any) -> AsyncIterator["Accounts"]:
    """Accounts and what they need, on the database of a server that may be running."""
    from core.app import new_context, opened
    from core.errors import Invalid
    from core.logs import configure_logging
    from core.migrate import is_behind
    from core.module import load_modules
    from core.settings import LogSettings
    from modules.auth.accounts import Accounts

    # What an operator does to an account is told as the server tells it.
    configure_logging(settings.section(LogSettings))
    context = new_context(settings)
    modules = load_modules(_OPENING)
    path = context.database.sqlite_path
    if path is not None and not path.exists():
        raise StartRefused(f"{path}: no such database: run `vopros migrate`")
    async with opened(context, modules):
        if await is_behind(context.database, modules):
            raise StartRefused("the database is not migrated: run `vopros migrate`")
        try:
            yield context.services.get(Accounts)
        except Invalid as exc:
            raise StartRefused(f"password: {exc.errors[0].message}") from exc
