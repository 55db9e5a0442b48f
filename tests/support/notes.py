"""A module of a stranger's, installed beside ours for as long as a test needs it."""

from pathlib import Path

from tests.support import packages

MODULE = """
    from pathlib import Path

    from core.module import Module

    HERE = Path(__file__).parent
    (HERE / "has_run").touch()
    MODULE = Module(
        name="notes",
        requires=("users",),
        router="notes_plugin.router",
        commands="notes_plugin.commands",
        models="notes_plugin.models",
        migrations=HERE / "migrations",
    )
"""
MODELS = """
    from datetime import datetime

    from sqlalchemy import ForeignKey, Identity, String
    from sqlalchemy.orm import Mapped, mapped_column

    from core.db import Base, BigId, UtcDateTime, db_now


    class NoteRow(Base):
        __tablename__ = "notes"
        __table_args__ = {"sqlite_autoincrement": True}

        id: Mapped[int] = mapped_column(BigId, Identity(always=True), primary_key=True)
        user_id: Mapped[int] = mapped_column(
            BigId, ForeignKey("users.id", ondelete="CASCADE"), index=True
        )
        text: Mapped[str] = mapped_column(String(200))
        made_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=db_now())
"""
ROUTER = """
    from fastapi import APIRouter

    from core.security import CurrentUser

    router = APIRouter(prefix="/notes", tags=["notes"])


    @router.get("/whose")
    async def whose(who: CurrentUser) -> str:
        return who.username
"""
COMMANDS = """
    import typer

    commands = typer.Typer(name="notes", help="Notes.", no_args_is_help=True)


    @commands.command("count")
    def count() -> None:
        typer.echo("no notes")


    @commands.command("burn")
    def burn() -> None:
        typer.echo("burnt")
"""


def install_notes(folder: Path) -> Path:
    """Install the module `notes` into `folder`, which goes on the import path.

    Returns its package; a file `has_run` appears in it when its code runs.
    """
    files = {"module": MODULE, "models": MODELS, "router": ROUTER, "commands": COMMANDS}
    package = install_module(folder, "notes", **files)
    (package / "migrations").mkdir()
    return package


def install_module(folder: Path, name: str, **files: str) -> Path:
    """Install a distribution `<name>-plugin` with the entry point of module `name`."""
    package = f"{name}_plugin"
    sources = {"__init__": "", **files}
    packages.install(
        folder,
        f"{name}-plugin",
        "1.2",
        entry_points=f"[vopros.modules]\n{name} = {package}.module:MODULE",
        files={f"{package}/{file}.py": code for file, code in sources.items()},
    )
    return folder / package
