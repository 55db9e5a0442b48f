"""One linear history per module: forth, back, alone, together, and gone wrong."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import IntegrityError

from core.db import Base, Database
from core.errors import StartRefused
from core.lock import server_lock
from core.locks import MIGRATION
from core.migrate import (
    differences,
    downgrade,
    histories,
    is_behind,
    load_models,
    owner,
    upgrade,
    version_table,
)
from core.module import Module, in_tree_names, load_modules
from tests.conftest import Databases, connected, served
from tests.support.config import write_config
from tests.support.notes import install_notes
from tests.support.process import COMMAND, assert_refused, environment, vopros
from tests.support.slow import waiting
from tests.support.upstream import Upstream, answers

MODULES = load_modules(in_tree_names())
WITH_TABLES = tuple(module for module in MODULES if module.has_tables)
USERS = next(module for module in MODULES if module.name == "users")
NAMES = [module.name for module in WITH_TABLES]


async def tables(database: Database) -> set[str]:
    async with database.reading() as session:
        connection = await session.connection()
        found = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    return {name for name in found if not name.startswith("sqlite_")}


async def fill(database: Database) -> None:
    """Two people, each with a credential, a session and a question."""
    now = "2026-11-01 10:00:00.000000+00:00"
    async with database.transaction() as session:
        for n in (1, 2):
            for statement in (
                f"INSERT INTO users (username, username_key)"
                f" VALUES ('user{n}', 'user{n}')",
                f"INSERT INTO auth_credentials (user_id, password_hash)"
                f" VALUES ({n}, 'x')",
                f"INSERT INTO auth_sessions (id, user_id, expires_at)"
                f" VALUES ('{n:032x}', {n}, '{now}')",
                f"INSERT INTO questions (user_id, content, idempotency_key)"
                f" VALUES ({n}, 'Why?', 'k')",
            ):
                await session.execute(text(statement))


async def counts(database: Database) -> dict[str, int]:
    async with database.reading() as session:
        return {
            table: await session.scalar(text(f"SELECT count(*) FROM {table}")) or 0
            for table in ("users", "auth_credentials", "auth_sessions", "questions")
        }


ALL_THERE = {"users": 2, "auth_credentials": 2, "auth_sessions": 2, "questions": 2}


@pytest.mark.slow
async def test_an_empty_database_comes_to_the_newest_revision_and_back(
    database: Database,
) -> None:
    assert await upgrade(database, MODULES) == NAMES
    assert await upgrade(database, MODULES) == []
    assert not any(found.is_behind for found in await histories(database, MODULES))
    assert {"users", "auth_credentials", "auth_sessions", "questions"} <= (
        await tables(database)
    )

    for module in reversed(WITH_TABLES):
        await downgrade(database, MODULES, module.name)
    assert await tables(database) == {version_table(m) for m in WITH_TABLES}
    assert [found.current for found in await histories(database, MODULES)] == (
        [None] * len(WITH_TABLES)
    )
    assert await upgrade(database, MODULES) == NAMES


async def drift(database: Database) -> list[Any]:
    async with database.migrating() as connection:
        return await connection.run_sync(
            lambda sync: [
                found
                for module in WITH_TABLES
                for found in differences(sync, module, MODULES)
            ]
        )


async def test_models_and_migrations_have_not_drifted_apart(database: Database) -> None:
    await upgrade(database, MODULES)
    assert await drift(database) == []


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE users ADD COLUMN nickname TEXT",
        "ALTER TABLE questions DROP COLUMN model",
        "DROP INDEX ix_questions_user_id_asked_at",
        "DROP TABLE auth_refresh_tokens",
        "CREATE TABLE questions_leftover (id INTEGER)",
    ],
)
async def test_a_drift_is_found(database: Database, change: str) -> None:
    await upgrade(database, MODULES)
    async with database.transaction() as session:
        await session.execute(text(change))
    assert await drift(database)


async def test_migrations_make_the_very_tables_that_the_models_describe(
    databases: Databases, database: Database, database_kind: str
) -> None:
    """Defaults and CHECK constraints too, which autogenerate does not compare."""
    await upgrade(database, MODULES)
    load_models(MODULES)
    ours = [
        table
        for table in Base.metadata.sorted_tables
        if owner(table.name, NAMES) is not None
    ]
    async with connected(await databases.empty(database_kind)) as modelled:
        async with modelled.migrating() as connection:
            await connection.run_sync(Base.metadata.create_all, tables=ours)
            await connection.commit()
        assert await schema(database) == await schema(modelled)


async def schema(database: Database) -> set[tuple[Any, ...]]:
    """Every definition, in the database's own words."""
    statements = {
        "sqlite": [
            "SELECT type, name, tbl_name, sql FROM sqlite_master"
            " WHERE tbl_name NOT LIKE 'alembic%' AND tbl_name NOT LIKE 'sqlite%'"
        ],
        "postgresql": [
            "SELECT table_name, column_name, data_type, character_maximum_length,"
            " is_nullable, column_default, identity_generation"
            " FROM information_schema.columns WHERE table_schema = 'public'"
            " AND table_name NOT LIKE 'alembic%'",
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)"
            " FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
            " AND conrelid::regclass::text NOT LIKE 'alembic%'",
            "SELECT tablename, indexname, indexdef FROM pg_indexes"
            " WHERE schemaname = 'public' AND tablename NOT LIKE 'alembic%'",
        ],
    }[database.dialect]
    async with database.reading() as session:
        return {
            tuple(_unordered(value) for value in row)
            for statement in statements
            for row in await session.execute(text(statement))
        }


def _unordered(value: Any) -> Any:
    """The clauses of a CREATE TABLE in any order; a renamed one is quoted."""
    if isinstance(value, str) and value.startswith("CREATE TABLE"):
        # SQLite writes an added column on the line of the one before it.
        clauses = re.split(r"\n|, (?=[a-z_]+ [A-Z])", value.replace('"', ""))
        return tuple(sorted(clause.strip(" ,\t") for clause in clauses))
    return value


async def test_one_module_goes_down_and_up_alone(database: Database) -> None:
    await upgrade(database, MODULES)
    await fill(database)
    await downgrade(database, MODULES, "questions")
    assert "questions" not in await tables(database)
    assert await upgrade(database, MODULES) == ["questions"]
    assert await counts(database) == ALL_THERE | {"questions": 0}


async def test_a_module_stays_while_another_that_requires_it_is_applied(
    database: Database,
) -> None:
    await upgrade(database, MODULES)
    await fill(database)
    with pytest.raises(StartRefused, match="'auth' requires 'users' and is applied"):
        await downgrade(database, MODULES, "users")
    # A disabled module has its tables all the same.
    with pytest.raises(StartRefused, match="'auth' requires 'users' and is applied"):
        await downgrade(database, load_modules(["users"]), "users")
    assert await counts(database) == ALL_THERE


async def test_a_disabled_modules_data_and_version_stay(database: Database) -> None:
    await upgrade(database, MODULES)
    await fill(database)
    without = load_modules(["users", "auth"])
    assert await upgrade(database, without) == []
    async with database.migrating() as connection:
        found = await connection.run_sync(differences, USERS, without)
    assert found == []
    assert await counts(database) == ALL_THERE
    assert await upgrade(database, MODULES) == []
    # And it can be taken away for good without being enabled again.
    await downgrade(database, without, "questions")
    assert "questions" not in await tables(database)


async def test_going_back_for_an_unknown_module_or_revision_is_refused(
    database: Database,
) -> None:
    await upgrade(database, MODULES)
    with pytest.raises(StartRefused, match="no module 'nosuch' with tables"):
        await downgrade(database, MODULES, "nosuch")
    with pytest.raises(StartRefused, match=r"questions: .*9999"):
        await downgrade(database, MODULES, "questions", "9999")


# Migrations of a test's own: the real history of `users`, and one step more.


def next_step(folder: Path, upgrading: str) -> tuple[Module, ...]:
    """The modules, `users` with another migration that does `upgrading`."""
    folder.mkdir(exist_ok=True)
    for file in USERS.migrations_folder.glob("*.py"):
        (folder / file.name).write_text(file.read_text(encoding="utf-8"))
    head = max(folder.glob("*.py")).name.partition("_")[0]
    body = "\n    ".join(dedent(upgrading).strip().splitlines())
    (folder / "9999_next.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        f"revision = '9999'\ndown_revision = {head!r}\n"
        f"def upgrade() -> None:\n    {body}\n"
        "def downgrade() -> None:\n    pass\n",
        encoding="utf-8",
    )
    changed = replace(USERS, migrations=folder)
    return tuple(changed if module is USERS else module for module in MODULES)


REBUILD = """
with op.batch_alter_table("users", recreate="{when}") as users:
    users.add_column(sa.Column("nickname", sa.String(32)))
"""


async def test_rebuilding_the_parent_table_loses_no_child(
    database: Database, tmp_path: Path
) -> None:
    await upgrade(database, MODULES)
    await fill(database)
    when = "always" if database.dialect == "sqlite" else "auto"
    newer = next_step(tmp_path, REBUILD.format(when=when))
    assert await upgrade(database, newer) == ["users"]
    assert await counts(database) == ALL_THERE
    async with database.transaction() as session:
        await session.execute(text("UPDATE users SET nickname = 'x'"))
        # The children still hang on their parents, and only on those.
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                await session.execute(text("UPDATE questions SET user_id = 99"))
        await session.execute(text("DELETE FROM users WHERE username = 'user1'"))
    assert set((await counts(database)).values()) == {1}


async def test_a_migration_that_would_leave_orphans_is_refused(
    database: Database, tmp_path: Path
) -> None:
    await upgrade(database, MODULES)
    await fill(database)
    orphaning = """op.execute("UPDATE users SET id = id + 10")"""
    if database.dialect == "postgresql":
        orphaning = orphaning.replace("id = id + 10", "id = DEFAULT")
    expected = "would leave orphaned rows|violates foreign key constraint"
    with pytest.raises(StartRefused, match=expected):
        await upgrade(database, next_step(tmp_path, orphaning))
    assert await counts(database) == ALL_THERE
    assert await upgrade(database, MODULES) == []


FAILING = """
op.add_column("users", sa.Column("nickname", sa.String(32)))
op.execute("UPDATE users SET username = 'changed'")
op.execute("SELECT * FROM nowhere")
"""


@pytest.mark.slow
async def test_F25_a_failing_migration_leaves_nothing_behind_and_frees_the_lock(
    database: Database, tmp_path: Path
) -> None:
    await upgrade(database, MODULES)
    await fill(database)
    broken = next_step(tmp_path, FAILING)
    with pytest.raises(StartRefused, match=r"users: the migration failed: .*nowhere"):
        await upgrade(database, broken)
    async with database.reading() as session:
        connection = await session.connection()
        columns = await connection.run_sync(_columns_of_users)
        names = await session.scalars(text("SELECT username FROM users"))
    assert "nickname" not in columns
    assert sorted(names) == ["user1", "user2"]
    found = {h.module.name: h for h in await histories(database, broken)}
    assert found["users"].is_behind

    (tmp_path / "9999_next.py").unlink()
    mended = next_step(tmp_path, REBUILD.format(when="auto"))
    async with asyncio.timeout(60):
        assert await upgrade(database, mended) == ["users"]


def _columns_of_users(sync: Connection) -> set[str]:
    return {column["name"] for column in inspect(sync).get_columns("users")}


async def test_F25_an_error_that_is_no_databases_leaves_nothing_behind_either(
    database: Database, tmp_path: Path
) -> None:
    await upgrade(database, MODULES)
    half = """
    op.add_column("users", sa.Column("nickname", sa.String(32)))
    raise LookupError("a mistake")
    """
    with pytest.raises(LookupError, match="a mistake"):
        await upgrade(database, next_step(tmp_path, half))
    async with database.reading() as session:
        connection = await session.connection()
        assert "nickname" not in await connection.run_sync(_columns_of_users)


async def test_F27_a_newer_database_is_called_newer_and_left_alone(
    database: Database, tmp_path: Path
) -> None:
    newer = next_step(tmp_path, REBUILD.format(when="auto"))
    # Even a part that is behind stays as it is.
    await upgrade(database, [m for m in newer if m.name in ("users", "auth")])
    with pytest.raises(StartRefused, match=r"database is newer .*'users'.* 9999"):
        await upgrade(database, MODULES)
    with pytest.raises(StartRefused, match="newer"):
        await is_behind(database, MODULES)
    assert "questions" not in await tables(database)


@pytest.mark.slow
async def test_F27_a_server_does_not_start_on_a_newer_database(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    async with connected(url) as database, database.transaction() as session:
        newer = text(f"UPDATE {version_table(USERS)} SET version_num = '9999'")
        await session.execute(newer)
    file = write_config(tmp_path / "app.toml", url)
    refused = await asyncio.to_thread(vopros, "--config", file, "serve", "--port", "0")
    assert_refused(refused, "the database is newer than this program", "9999")


# One at a time.


@pytest.fixture
async def empty_postgresql(databases: Databases) -> str:
    return await databases.empty("postgresql")


@pytest.mark.slow
async def test_F24_four_migrations_at_once_migrate_once(
    empty_postgresql: str, tmp_path: Path
) -> None:
    file = write_config(tmp_path / "app.toml", empty_postgresql)
    command = [*COMMAND, "--config", str(file), "migrate"]
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(
            *command, stdout=pipe, stderr=pipe, env=environment()
        )
        for _ in range(4)
    ]
    said = [await process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    migrated = f"migrated: {', '.join(NAMES)}\n".encode()
    expected = [migrated] + [b"nothing to migrate\n"] * 3
    assert sorted(out for out, _ in said) == expected
    async with connected(empty_postgresql) as database, database.reading() as session:
        for module in WITH_TABLES:
            versions = text(f"SELECT count(*) FROM {version_table(module)}")
            assert await session.scalar(versions) == 1


async def test_F26_waiting_for_another_migration_ends(empty_postgresql: str) -> None:
    async with (
        connected(empty_postgresql) as holder,
        holder.migrating() as connection,
        connected(empty_postgresql, start_seconds=0.3) as waiting,
    ):
        assert await connection.scalar(text(MIGRATION.try_for_session))
        with pytest.raises(StartRefused, match=r"another migration .* in 0\.3 s"):
            async with asyncio.timeout(60):
                await upgrade(waiting, MODULES)
    async with connected(empty_postgresql) as database:
        assert await upgrade(database, MODULES) == NAMES


@pytest.mark.slow
async def test_asking_with_a_budget_does_not_wait_for_a_migration(
    databases: Databases, upstream: Upstream, tmp_path: Path
) -> None:
    """Both take an advisory lock, but not the same one."""
    url = await databases.migrated("postgresql")
    file = write_config(
        tmp_path / "app.toml",
        url,
        upstream.base_url,
        questions="service_per_day = 9",
        database="lock_seconds = 60",
    )
    async with served(file) as (_, api), connected(url) as database:
        ada = await api.account()
        async with database.transaction() as session:
            # The migration holds its lock, and waits for what it reads next.
            await session.execute(text(f"LOCK TABLE {version_table(USERS)}"))
            migrating = asyncio.create_task(
                asyncio.to_thread(vopros, "--config", file, "migrate")
            )
            await waiting(database, 1)
            async with upstream.behaving(answers):
                assert (await api.ask(ada, "Now?")).status_code == 201
            assert not migrating.done()
        assert (await migrating).stdout == "nothing to migrate\n"


async def test_a_migration_and_a_server_do_not_share_a_sqlite_file(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    file = write_config(tmp_path / "app.toml", url)
    with server_lock(Path(url.partition(":///")[2])):
        refused = await asyncio.to_thread(vopros, "--config", file, "migrate")
    assert_refused(refused, "in use by another server")


# What belongs to whom, and writing the next one.


@pytest.mark.parametrize(
    ("table", "names", "expected"),
    [
        ("users", ["users", "auth"], "users"),
        ("auth_sessions", ["users", "auth"], "auth"),
        ("questions_usage", ["questions", "questions_usage"], "questions_usage"),
        ("questions_usage_days", ["questions", "questions_usage"], "questions_usage"),
        ("questions_asked", ["questions", "questions_usage"], "questions"),
        ("usersettings", ["users", "auth"], None),
        ("alembic_version_users", ["users", "auth"], None),
        ("strangers", ["users"], None),
    ],
)
def test_a_table_belongs_to_the_module_with_the_longest_matching_name(
    table: str, names: Sequence[str], expected: str | None
) -> None:
    assert owner(table, names) == expected


@pytest.mark.slow
async def test_a_written_revision_works(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    package = install_notes(tmp_path)
    url = await databases.migrated(database_kind)
    enabled = 'enabled = ["users", "notes"]'
    file = write_config(tmp_path / "app.toml", url, modules=enabled)

    async def run(*arguments: str) -> str:
        env = {"PYTHONPATH": str(tmp_path)}
        done = await asyncio.to_thread(vopros, "--config", file, *arguments, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    written = Path(await run("revision", "notes", "Create notes"))
    assert written == package / "migrations" / "0001_create_notes.py"
    code = written.read_text()
    assert '"""Create notes."""' in code
    assert "from core.db import" in code
    assert code.count("op.create_table(") == code.count("create_table('notes'") == 1

    assert await run("migrate") == "migrated: notes"
    async with connected(url) as database:
        async with database.transaction() as session:
            for statement in (
                "INSERT INTO users (username, username_key) VALUES ('ada', 'ada')",
                "INSERT INTO notes (user_id, text) SELECT id, 'x' FROM users",
            ):
                await session.execute(text(statement))
            made_at = await session.scalar(text("SELECT made_at FROM notes"))
        assert made_at is not None
        names = await tables(database)
    assert {"notes", "alembic_version_notes", "questions"} <= names

    second = Path(await run("revision", "notes", "Nothing new"))
    assert second.name == "0002_nothing_new.py"
    assert "op." not in second.read_text()
    down = await run("migrate", "down", "notes", "--to", "base", "--yes")
    assert down.splitlines()[-1] == "notes is at base"


@pytest.mark.slow
async def test_no_revision_is_written_on_a_database_that_is_behind(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.empty("postgresql")
    file = write_config(tmp_path / "app.toml", url)
    refused = await asyncio.to_thread(
        vopros, "--config", file, "revision", "users", "Too early"
    )
    assert_refused(refused, "the database is not migrated: run `vopros migrate`")
