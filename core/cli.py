"""The command line. Nothing heavy is imported before a command needs it."""

import asyncio
import os
import sys
from collections.abc import (
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from core.errors import DomainError, StartRefused

if TYPE_CHECKING:
    from core.module import Module

T = TypeVar("T")
CONFIGURATION_ERROR = 78  # EX_CONFIG of sysexits.h


@dataclass
class Invocation:
    """What the options before the command said."""

    file: Path | None = None

    def settings(
        self,
        *,
        thorough: bool = False,
        opening: Collection[str] | None = None,
        **server: Any,
    ) -> Any:
        """Load the configuration; exits with 78 and readable lines when it is wrong.

        A command that opens no module, or some, does not need what others do.
        """
        from core.settings import load_settings

        overrides: dict[tuple[str, ...], str] = {
            ("server", key): value for key, value in server.items() if value is not None
        }
        with refusals(CONFIGURATION_ERROR):
            return load_settings(
                self.file, overrides=overrides, thorough=thorough, opening=opening
            )


@contextmanager
def refusals(exit_code: int = 1) -> Iterator[None]:
    """Print what refuses to start as lines for people, and exit."""
    try:
        yield
    except (StartRefused, DomainError) as exc:
        for line in str(exc).splitlines():
            typer.echo(f"vopros: {line}", err=True)
        raise typer.Exit(exit_code) from exc


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run asynchronous work to its end, printing refusals as lines."""
    with refusals():
        return asyncio.run(work())


app = typer.Typer(
    name="vopros",
    help="A self-hosted question-answering API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Plain help: importing what draws boxes takes a third of the time.
    rich_markup_mode=None,
)
config = typer.Typer(help="Look at the configuration.", no_args_is_help=True)
migrate = typer.Typer(
    help="Bring the database up to date.", invoke_without_command=True
)
app.add_typer(config, name="config")
app.add_typer(migrate, name="migrate")


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"vopros {version('vopros')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="The configuration file; also accepted after the command.",
            metavar="PATH",
        ),
    ] = None,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the version and exit.",
            callback=_show_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """A self-hosted question-answering API."""
    context.obj = Invocation(file)


@app.command()
def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[str | None, typer.Option(help="The port; 0 takes any.")] = None,
) -> None:
    """Serve the API until told to stop."""
    settings = context.obj.settings(host=host, port=port)
    from core.server import serve as serve_until_stopped

    runner = asyncio.run
    if sys.platform != "win32":
        import uvloop

        runner = uvloop.run
    with refusals():
        serve_until_stopped(settings, runner)


@migrate.callback()
def migrate_up(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be applied, and stop.")
    ] = False,
) -> None:
    """Bring the tables of every enabled module to their newest revision."""
    if context.invoked_subcommand is not None:
        if dry_run:
            raise typer.BadParameter("put --dry-run behind the subcommand")
        return
    settings = context.obj.settings(opening=())
    if dry_run:
        _show_pending(settings)
        return
    from core.migrate import upgrade

    moved = run(lambda: _migrating(settings, lambda db: upgrade(db, settings.modules)))
    typer.echo(f"migrated: {', '.join(moved)}" if moved else "nothing to migrate")


def _show_pending(settings: Any) -> None:
    from core.migrate import pending

    lines = [
        f"{found.module.name}: {revision}"
        for found in _histories(settings)
        for revision in pending(found)
    ]
    typer.echo("\n".join(lines) or "nothing to migrate")


@migrate.command("status")
def migrate_status(context: typer.Context) -> None:
    """Show the applied and the pending migrations of every module."""
    from core.migrate import is_newer, pending

    rows = [("module", "applied", "pending")]
    for found in _histories(context.obj.settings(opening=())):
        left = ", ".join(pending(found)) or "-"
        if is_newer(found):
            left = "unknown: the database is newer than this program"
        rows.append((found.module.name, found.current or "-", left))
    echo_table(rows)


def _histories(settings: Any) -> Any:
    """Where every module is; a server may be running meanwhile."""
    from core.db import Database
    from core.migrate import histories
    from core.settings import DatabaseSettings

    async def read() -> Any:
        database = Database(settings.section(DatabaseSettings))
        try:
            return await histories(database, settings.modules)
        finally:
            await database.close()

    return run(read)


@migrate.command("down")
def migrate_down(
    context: typer.Context,
    module: Annotated[str, typer.Argument(help="The module to downgrade.")],
    to: Annotated[
        str, typer.Option(help="A revision, a number of steps such as -1, or base.")
    ],
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask for confirmation.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be deleted, and stop.")
    ] = False,
) -> None:
    """Downgrade a module's migrations (deletes its data)."""
    settings = context.obj.settings(opening=())
    from core.migrate import downgrade, plan_downgrade

    plan = run(
        lambda: _migrating(
            settings, lambda db: plan_downgrade(db, settings.modules, module, to)
        )
    )
    _show_loss(plan)
    if settings.migrates_on_start:
        typer.echo(
            "Note: the next start of the server migrates up again;"
            " database.migrate_on_start = false prevents it."
        )
    if dry_run:
        return
    with refusals():
        if not yes:
            _confirm_loss()
    run(
        lambda: _migrating(
            settings, lambda db: downgrade(db, settings.modules, module, plan.target)
        )
    )
    typer.echo(f"{module} is at {plan.target}")


def _show_loss(plan: Any) -> None:
    steps = ", ".join(plan.revisions)
    typer.echo(f"{plan.module}: from {plan.current} to {plan.target}, undoing {steps}")
    lost = [f"  table {name}: {_rows(n)}" for name, n in plan.tables.items()]
    lost += [f"  column {name} of {_rows(n)}" for name, n in plan.columns.items()]
    if lost:
        typer.echo("\n".join(("This deletes for good:", *lost)))
    else:
        typer.echo("No table and no column is deleted.")


def _rows(number: int) -> str:
    return f"{number} row{'' if number == 1 else 's'}"


def _confirm_loss() -> None:
    if not sys.stdin.isatty():
        raise StartRefused("not confirmed: answer at a terminal, or give --yes")
    if not typer.confirm("Continue?"):
        raise StartRefused("not confirmed: nothing was changed")


@app.command()
def revision(
    context: typer.Context,
    module: Annotated[str, typer.Argument(help="Whose tables have changed.")],
    message: Annotated[str, typer.Argument(help="What is now true.")],
) -> None:
    """Write a module's next migration from its models.

    With SQLite the database that is configured is neither needed nor changed.
    """
    settings = context.obj.settings(opening=())
    from core.migrate import temporary_database, write_revision
    from core.settings import DatabaseSettings

    async def write(database: Any) -> str:
        return await write_revision(database, settings.modules, module, message)

    async def write_from_migrations() -> str:
        section = settings.section(DatabaseSettings)
        async with temporary_database(section, settings.modules) as database:
            return await write(database)

    if settings.is_sqlite:
        typer.echo(run(write_from_migrations))
    else:
        typer.echo(run(lambda: _migrating(settings, write)))


async def _migrating(settings: Any, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Do `work` on the database while no server holds it (SQLite)."""
    from contextlib import nullcontext

    from core.db import Database
    from core.lock import server_lock
    from core.settings import DatabaseSettings

    database = Database(settings.section(DatabaseSettings))
    path = database.sqlite_path
    with server_lock(path) if path is not None else nullcontext():
        try:
            await database.connect_patiently()
            return await work(database)
        finally:
            await database.close()


@config.command("check")
def config_check(
    context: typer.Context,
    live: Annotated[
        bool,
        typer.Option("--live", help="Also ask who is configured; costs no tokens."),
    ] = False,
) -> None:
    """Say what is wrong with the configuration; exits with 78 if anything is.

    With --live it exits with 1 if somebody who is in use cannot be asked.
    """
    settings = context.obj.settings(thorough=True)
    typer.echo(f"{settings.raw.file}: nothing wrong")
    for remark in dict.fromkeys(settings.remarks()):
        typer.echo(f"note: {remark}")
    if live:
        outcomes = [_survey(settings, module) for module in settings.modules]
        raise typer.Exit(0 if all(outcomes) else 1)


def _survey(settings: Any, module: "Module") -> bool:
    """Show what one module finds out; whether all that is in use is well."""
    if (survey := module.survey) is None:
        return True

    async def ask() -> Any:
        return await survey(settings)

    found = run(ask)
    echo_table(found.rows)
    for failure in found.failures:
        typer.echo(f"vopros: {printable(failure)}", err=True)
    return not found.failures


def printable(text: str) -> str:
    """`text` without what could end a line or move the terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)


def echo_table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows of one length with their columns aligned."""
    clean = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    for row in clean:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


@config.command("show")
def config_show(context: typer.Context) -> None:
    """Print every setting with the place it comes from; secrets are masked."""
    from core.settings import describe

    for key, value, origin in describe(context.obj.settings()):
        typer.echo(f"{key} = {value}  # {origin}")


@config.command("schema")
def config_schema(context: typer.Context) -> None:
    """Print a JSON Schema of the configuration file, for editors.

    Also with a file that is wrong, as long as it is TOML.
    """
    import json

    from core.layers import read_layers
    from core.schema import file_schema
    from core.settings import enabled_modules

    with refusals(CONFIGURATION_ERROR):
        raw = read_layers(context.obj.file, os.environ)
        schema = file_schema(raw, enabled_modules(raw))
    typer.echo(json.dumps(schema, indent=2, ensure_ascii=False))


@app.command("make-secret")
def make_secret(
    files: Annotated[list[Path], typer.Argument(help="One secret each.")],
) -> None:
    """Write random secrets into files that only you can read; keep those there are."""
    from core.secret_file import make_secret_file

    with refusals():
        for file in files:
            typer.echo(f"{file}: {'made' if make_secret_file(file) else 'kept'}")


@app.command()
def plugins() -> None:
    """List what is installed: modules and providers, ours and others'."""
    from core.plugins import installed

    for found in installed():
        typer.echo(f"{found.kind:<9} {found.name:<16} {found.origin}")


def main() -> None:
    """Run the command line, with the commands that enabled modules bring."""
    files, arguments = _without_config(sys.argv[1:])
    if len(files) > 1:
        typer.echo("vopros: --config is given more than once", err=True)
        sys.exit(2)
    from core.module import import_part

    for module in _enabled_modules(Path(files[0]) if files else None):
        if module.commands is not None:
            try:
                part = import_part(module, module.commands, "commands")
                app.add_typer(part.commands)
            except StartRefused as exc:
                typer.echo(f"vopros: {exc}", err=True)
    app([*(f"--config={file}" for file in files), *arguments])


def _without_config(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take `--config PATH` and `--config=PATH` out of a command line, wherever.

    Typer accepts an option of the program before the command only. What follows `--`
    is left alone, and so is `--config` without a value, for Typer to complain of.
    """
    files: list[str] = []
    others: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return files, [*others, argument, *rest]
        if argument == "--config" and rest:
            files.append(rest.pop(0))
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        else:
            others.append(argument)
    return files, others


def _enabled_modules(file: Path | None) -> "tuple[Module, ...]":
    """What the configuration enables; others' code must not run unless it does."""
    from core.layers import read_layers
    from core.module import in_tree_names, load_modules
    from core.settings import enabled_modules

    # Whichever command needs the configuration says what is wrong with it.
    with suppress(StartRefused):
        return enabled_modules(read_layers(file, os.environ))
    with suppress(StartRefused):
        return load_modules(in_tree_names())
    return ()
