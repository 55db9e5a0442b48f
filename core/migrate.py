"""Migrations: one linear Alembic history and one version table per module.

A shared history with branches was tried: a disabled module broke `upgrade`, and going
back for one module took the others' tables along.
"""

import asyncio
import re
from argparse import Namespace
from collections.abc import (
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from pydantic import SecretStr
from sqlalchemy import Connection, MetaData, Table, func, inspect, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from core.db import Database
from core.errors import StartRefused
from core.locks import MIGRATION
from core.module import ROOT, Module, import_part, known_modules
from core.settings import DatabaseSettings

_FOLDER = ROOT / "migrations"


@dataclass(frozen=True)
class History:
    """Where one module's tables are, and where they should be."""

    module: Module
    current: str | None
    revisions: Sequence[str]
    """All that this program has, oldest first."""

    @property
    def is_behind(self) -> bool:
        head = self.revisions[-1] if self.revisions else None
        return self.current != head


def version_table(module: Module) -> str:
    """The table that holds the module's one revision."""
    return f"alembic_version_{module.name}"


def owner(table: str, names: Iterable[str]) -> str | None:
    """The module a table belongs to: the longest name that it is or begins with."""
    owners = [name for name in names if f"{table}_".startswith(f"{name}_")]
    return max(owners, key=len, default=None)


def alembic_config(
    module: Module,
    modules: Iterable[Module],
    connection: Connection | None = None,
) -> Config:
    """The Alembic environment of one module, as `migrations/env.py` reads it."""
    # Quiet: what a command prints is ours to say.
    config = Config(cmd_opts=Namespace(quiet=True))
    # Alembic interpolates `%` in its options.
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    folder = str(module.migrations_folder).replace("%", "%%")
    config.set_main_option("version_locations", folder)
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    names = [known.name for known in known_modules(modules)]
    config.attributes.update(
        connection=connection,
        version_table=version_table(module),
        owns=lambda table: owner(table, names) == module.name,
    )
    return config


def load_models(modules: Iterable[Module]) -> None:
    """Import the tables of every module, so that the metadata knows them."""
    for module in modules:
        if module.models is not None:
            import_part(module, module.models)


async def upgrade(database: Database, modules: Sequence[Module]) -> list[str]:
    """Bring every module to its newest revision; return the names of those moved.

    Raises StartRefused when the database is newer than the code, when a migration
    fails, or when another process is at it for longer than `start_seconds`.
    """
    async with _locked(database) as connection:
        found = await _histories(connection, modules)
        for history in found:
            _refuse_newer(history)
        behind = [history.module for history in found if history.is_behind]
        for module in behind:
            await _run(connection, modules, module, command.upgrade, "head")
    return [module.name for module in behind]


@dataclass(frozen=True)
class Downgrade:
    """What taking a module back does; `rows` are counted, by table or column."""

    module: str
    current: str
    target: str
    revisions: tuple[str, ...]
    """The migrations to be taken back, the newest first."""
    tables: Mapping[str, int]
    columns: Mapping[str, int]


async def downgrade(
    database: Database, modules: Sequence[Module], name: str, to: str = "base"
) -> None:
    """Take one module back to a revision, a number of steps (`-1`), or `base`.

    Raises StartRefused while a module that needs it is applied.
    """
    async with _locked(database) as connection:
        known, module, path = await _downgrade_path(connection, modules, name, to)
        await _run(connection, known, module, command.downgrade, path.target)


async def plan_downgrade(
    database: Database, modules: Sequence[Module], name: str, to: str
) -> Downgrade:
    """Return what `downgrade` would delete; it is tried, and rolled back.

    Raises StartRefused as `downgrade` does.
    """
    async with _locked(database) as connection:
        known, module, path = await _downgrade_path(connection, modules, name, to)

        def attempt(sync: Connection) -> Downgrade:
            before = _columns(sync)
            try:
                with _named(module):
                    config = alembic_config(module, known, sync)
                    command.downgrade(config, path.target)
                after = _columns(sync)
            finally:
                sync.rollback()
            own = before.keys() - {version_table(module)}
            gone = sorted(own - after.keys())
            cut = {
                table: sorted(before[table] - after[table])
                for table in sorted(own & after.keys())
                if before[table] - after[table]
            }
            # Of what goes only: other tables may be large.
            rows = {table: _count(sync, table) for table in (*gone, *cut)}
            columns = {f"{t}.{c}": rows[t] for t, names in cut.items() for c in names}
            return replace(path, tables={t: rows[t] for t in gone}, columns=columns)

        return await connection.run_sync(attempt)


async def _downgrade_path(
    connection: AsyncConnection, modules: Sequence[Module], name: str, to: str
) -> tuple[tuple[Module, ...], Module, Downgrade]:
    """All known modules, the one to take back, and the way; nothing counted yet."""
    # A disabled module is applied as long as its tables are there.
    known = tuple(known_modules(modules))
    module = _with_tables(known, name)
    current = None
    for history in await _histories(connection, known):
        if name in history.module.requires and history.current is not None:
            needing = history.module.name
            raise StartRefused(f"{needing!r} requires {name!r} and is applied")
        if history.module is module:
            _refuse_newer(history)
            current = history.current
    await connection.rollback()
    if current is None:
        raise StartRefused(f"{name}: no migration is applied")
    applied = [found.revision for found in _applied(module, current)]
    kept = _kept(name, applied, to)
    target = applied[kept - 1] if kept else "base"
    back = tuple(reversed(applied[kept:]))
    return known, module, Downgrade(name, current, target, back, {}, {})


def _kept(name: str, applied: Sequence[str], to: str) -> int:
    """How many of the applied migrations stay."""
    if to == "base":
        return 0
    if to in applied[:-1]:
        return applied.index(to) + 1
    if to == applied[-1]:
        raise StartRefused(f"{name}: it is at revision {to} already")
    if re.fullmatch("-[1-9][0-9]{0,5}", to) and int(to[1:]) <= len(applied):
        return len(applied) + int(to)
    known = ", ".join(applied)
    raise StartRefused(
        f"{name}: --to {to!r} is not `base`, a number of steps from -1 to "
        f"-{len(applied)}, or an applied revision ({known})"
    )


def _columns(connection: Connection) -> dict[str, set[str]]:
    inspector = inspect(connection)
    return {
        table: {column["name"] for column in inspector.get_columns(table)}
        for table in inspector.get_table_names()
    }


def _count(connection: Connection, table: str) -> int:
    counted = select(func.count()).select_from(Table(table, MetaData()))
    return connection.scalar(counted) or 0


def pending(history: History) -> list[str]:
    """The migrations that `upgrade` would apply, oldest first: `0002 Add attempts`."""
    applied = len(_applied(history.module, history.current))
    return [
        f"{found.revision} {found.doc.rstrip('.')}"
        for found in _ordered(history.module)[applied:]
    ]


def _applied(module: Module, current: str | None) -> list[Script]:
    ordered = _ordered(module)
    revisions = [found.revision for found in ordered]
    return ordered[: revisions.index(current) + 1] if current in revisions else []


def _ordered(module: Module) -> list[Script]:
    """Every migration of a module, oldest first."""
    return [*_script(module).walk_revisions()][::-1]


def known_revisions(modules: Iterable[Module]) -> dict[str, Sequence[str]]:
    """Read the revisions that this program has, by module, oldest first."""
    return {
        module.name: tuple(found.revision for found in _ordered(module))
        for module in modules
        if module.has_tables
    }


async def histories(
    database: Database,
    modules: Sequence[Module],
    known: Mapping[str, Sequence[str]] | None = None,
) -> list[History]:
    """Where each module with tables is; changes nothing.

    `known` avoids reading the files of the migrations every time.
    """
    known = known_revisions(modules) if known is None else known
    path = database.sqlite_path
    if path is not None and not path.exists():
        # To look into it would make it.
        return [History(m, None, known[m.name]) for m in modules if m.has_tables]
    async with database.probing() as connection:
        return await _histories(connection, modules, known)


async def is_behind(database: Database, modules: Sequence[Module]) -> bool:
    """Whether any module is behind. Raises StartRefused for a newer database."""
    found = await histories(database, modules)
    for history in found:
        _refuse_newer(history)
    return any(history.is_behind for history in found)


@asynccontextmanager
async def temporary_database(
    settings: DatabaseSettings, modules: Sequence[Module]
) -> AsyncIterator[Database]:
    """A SQLite database with every migration applied, removed at the end."""
    with TemporaryDirectory() as folder:
        url = SecretStr(f"sqlite+aiosqlite:///{folder}/vopros.db")
        database = Database(settings.model_copy(update={"url": url, "password": None}))
        try:
            await upgrade(database, modules)
            yield database
        finally:
            await database.close()


async def write_revision(
    database: Database, modules: Sequence[Module], name: str, message: str
) -> str:
    """Write the next migration of a module from its models; return the file's path."""
    module = _with_tables(modules, name)
    load_models(modules)
    async with _locked(database) as connection:
        if any(history.is_behind for history in await _histories(connection, modules)):
            raise StartRefused("the database is not migrated: run `vopros migrate`")

        def write(sync: Connection) -> str:
            config = alembic_config(module, modules, sync)
            script = ScriptDirectory.from_config(config)
            number = sum(1 for _ in script.walk_revisions()) + 1
            written = command.revision(
                config,
                message,
                autogenerate=True,
                rev_id=f"{number:04d}",
                version_path=str(module.migrations_folder),
            )
            assert written is not None and not isinstance(written, list)
            return written.path

        return await connection.run_sync(write)


def differences(
    connection: Connection, module: Module, modules: Sequence[Module]
) -> list[Any]:
    """What autogenerate would still write for a module: nothing without drift."""
    load_models(modules)
    found: list[Any] = []

    def collect(context: Any, revision: Any, directives: Any) -> None:
        found.extend(directives[0].upgrade_ops.as_diffs())
        directives[:] = []

    config = alembic_config(module, modules, connection)
    config.attributes["process_revision_directives"] = collect
    command.revision(config, "drift", autogenerate=True)
    return found


def _with_tables(modules: Iterable[Module], name: str) -> Module:
    for module in modules:
        if module.name == name and module.has_tables:
            return module
    raise StartRefused(f"there is no module {name!r} with tables")


def is_newer(history: History) -> bool:
    """Whether the database is at a revision that this program does not know."""
    return history.current is not None and history.current not in history.revisions


def _refuse_newer(history: History) -> None:
    if not is_newer(history):
        return
    raise StartRefused(
        f"the database is newer than this program: {history.module.name!r} is at "
        f"revision {history.current}, which this version does not know"
    )


def _script(module: Module) -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config(module, ()))


async def _histories(
    connection: AsyncConnection,
    modules: Sequence[Module],
    known: Mapping[str, Sequence[str]] | None = None,
) -> list[History]:
    revisions = known_revisions(modules) if known is None else known
    with_tables = [module for module in modules if module.has_tables]

    def read(sync: Connection) -> list[History]:
        existing = set(inspect(sync).get_table_names())
        return [
            History(module, _current(sync, module, existing), revisions[module.name])
            for module in with_tables
        ]

    return await connection.run_sync(read)


def _current(connection: Connection, module: Module, existing: set[str]) -> str | None:
    if version_table(module) not in existing:
        return None
    options = {"version_table": version_table(module)}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


async def _run(
    connection: AsyncConnection,
    modules: Sequence[Module],
    module: Module,
    step: Callable[[Config, str], None],
    revision: str,
) -> None:
    """One module's step, whole or not at all."""

    def run(sync: Connection) -> None:
        with _named(module):
            step(alembic_config(module, modules, sync), revision)
        if sync.dialect.name == "sqlite":
            _refuse_orphans(sync, module)

    try:
        await connection.run_sync(run)
        await connection.commit()
    except BaseException:
        await connection.rollback()
        raise


@contextmanager
def _named(module: Module) -> Iterator[None]:
    """Raise StartRefused, naming the module, for what a migration of it raises."""
    try:
        yield
    except CommandError as exc:
        raise StartRefused(f"{module.name}: {exc}") from exc
    except DBAPIError as exc:
        problem = f"the migration failed: {_first_line(exc)}"
        raise StartRefused(f"{module.name}: {problem}") from exc


def _first_line(exc: DBAPIError) -> str:
    # What follows the first line of PostgreSQL's words may quote a row.
    said = str(getattr(exc.orig, "__cause__", None) or exc.orig)
    return said.partition("\n")[0]


def _refuse_orphans(connection: Connection, module: Module) -> None:
    # Foreign keys are off while SQLite rebuilds tables, so nothing else would notice.
    if connection.execute(text("PRAGMA foreign_key_check")).first() is not None:
        raise StartRefused(f"{module.name}: the migration would leave orphaned rows")


@asynccontextmanager
async def _locked(database: Database) -> AsyncIterator[AsyncConnection]:
    """A connection that alone may migrate. SQLite is locked by `lock.server_lock`."""
    async with database.migrating() as connection:
        if database.dialect == "sqlite":
            yield connection
            return
        await _take_advisory_lock(connection, database.settings.start_seconds)
        yield connection


async def _take_advisory_lock(connection: AsyncConnection, seconds: float) -> None:
    # Held by the session, not the transaction: it survives each module's commit, and
    # ends with the connection whatever happens.
    deadline = asyncio.get_running_loop().time() + seconds
    attempt = text(MIGRATION.try_for_session)
    while not await connection.scalar(attempt):
        await connection.commit()
        if asyncio.get_running_loop().time() > deadline:
            raise StartRefused(f"another migration did not finish in {seconds:g} s")
        await asyncio.sleep(0.2)
    await connection.commit()
