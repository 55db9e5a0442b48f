"""`vopros accounts`: what only an operator may do; works beside a running server."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from core.cli import refusals, run
from core.errors import StartRefused

if TYPE_CHECKING:
    from modules.auth.service import Auth

_OPENING = ("auth",)
commands = typer.Typer(
    name="accounts", help="Make administrators.", no_args_is_help=True
)


@commands.command("create-admin")
def create_admin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The user name.")],
    password_file: Annotated[
        Path | None,
        typer.Option(help="A file with the password; else a prompt or stdin."),
    ] = None,
) -> None:
    """Make an administrator's account."""
    settings = context.obj.settings(opening=_OPENING)
    from modules.auth.schemas import Password
    from modules.users.public import OperatorsUsername

    with refusals():
        username = _checked(OperatorsUsername, name, "user name")
        password = _checked(Password, _read_password(password_file), "password")

    async def create() -> int:
        from modules.users.public import Role

        secret = password.get_secret_value()
        async with _opened(settings) as auth:
            return (await auth.register(username, secret, Role.ADMIN)).id

    typer.echo(f"created administrator {username} with id {run(create)}")


@commands.command("set-role")
def set_role(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The user name.")],
    role: Annotated[str, typer.Argument(help="user or admin")],
) -> None:
    """Make somebody an administrator, or an ordinary user again."""
    settings = context.obj.settings(opening=_OPENING)

    async def change() -> str:
        from modules.users.public import Role

        if role not in list(Role):
            raise StartRefused(f"the role must be one of {', '.join(Role)}")
        async with _opened(settings) as auth:
            return (await auth.set_role(name, Role(role))).username

    typer.echo(f"{run(change)} is now {role}")


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
        return given.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        place = file or "standard input"
        raise StartRefused(f"{place}: the password cannot be read") from exc


@asynccontextmanager
async def _opened(settings: Any) -> AsyncIterator["Auth"]:
    """Auth and what it requires, on the database of a server that may be running."""
    from core.app import new_context, opened
    from core.errors import Invalid
    from core.migrate import is_behind
    from core.module import load_modules
    from modules.auth.service import Auth

    context = new_context(settings)
    modules = load_modules(_OPENING)
    path = context.database.sqlite_path
    if path is not None and not path.exists():
        raise StartRefused(f"{path}: no such database: run `vopros migrate`")
    async with opened(context, modules):
        if await is_behind(context.database, modules):
            raise StartRefused("the database is not migrated: run `vopros migrate`")
        try:
            yield context.services.get(Auth)
        except Invalid as exc:
            raise StartRefused(f"password: {exc.errors[0].message}") from exc
