"""`vopros migrate`: nothing is deleted unless somebody has said so."""

import asyncio
import os
import pty
import subprocess
from pathlib import Path

import pytest
from sqlalchemy import text

from core.module import ROOT
from tests.conftest import Databases, connected
from tests.support.config import write_config
from tests.support.process import COMMAND, assert_refused, environment, vopros

BACK = ("migrate", "down", "questions", "--to")


@pytest.fixture
async def url(databases: Databases, database_kind: str) -> str:
    """A migrated database in which one person has asked one question."""
    url = await databases.migrated(database_kind)
    async with connected(url) as database, database.transaction() as session:
        for statement in (
            "INSERT INTO users (username, username_key) VALUES ('ada', 'ada')",
            "INSERT INTO questions (user_id, content, idempotency_key)"
            " SELECT id, 'Why?', 'k' FROM users",
        ):
            await session.execute(text(statement))
    return url


@pytest.fixture
def file(url: str, tmp_path: Path) -> Path:
    return write_config(tmp_path / "app.toml", url)


async def questions(url: str) -> int:
    """How many questions are stored; fails without the table."""
    async with connected(url) as database, database.reading() as session:
        return await session.scalar(text("SELECT count(*) FROM questions")) or 0


async def command(file: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return await asyncio.to_thread(vopros, "--config", file, *arguments)


@pytest.mark.slow
async def test_without_a_terminal_or_yes_nothing_is_deleted(
    file: Path, url: str
) -> None:
    refused = await command(file, *BACK, "base")
    assert_refused(refused, "not confirmed", "--yes")
    assert "table questions: 1 row" in refused.stdout
    assert await questions(url) == 1


@pytest.mark.slow
async def test_it_names_what_is_lost_and_does_it_when_told(
    file: Path, url: str, database_kind: str
) -> None:
    shown = await command(file, *BACK, "-1", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "questions: from 0003 to 0002, undoing 0003" in shown.stdout
    assert "table questions_usage: 0 rows" in shown.stdout
    assert "column questions." in shown.stdout
    assert "table questions:" not in shown.stdout
    assert await questions(url) == 1

    done = await command(file, *BACK, "base", "--yes")
    assert done.returncode == 0, done.stderr
    assert "undoing 0003, 0002, 0001" in done.stdout
    assert "table questions: 1 row" in done.stdout
    migrates_again = "the next start of the server migrates up again" in done.stdout
    assert migrates_again == (database_kind == "sqlite")
    assert done.stdout.endswith("questions is at base\n")
    with pytest.raises(Exception, match="questions"):
        await questions(url)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("9999", "'9999' is not `base`"),
        ("-4", "-1 to -3"),
        ("0003", "at revision 0003 already"),
        ("head", "'head' is not"),
        ("-0", "'-0' is not"),
    ],
)
async def test_where_to_must_be_an_earlier_revision(
    file: Path, url: str, to: str, words: str
) -> None:
    assert_refused(await command(file, *BACK, to, "--yes"), words)
    assert await questions(url) == 1


async def test_where_to_must_be_said(file: Path, url: str) -> None:
    refused = await command(file, "migrate", "down", "questions", "--yes")
    assert refused.returncode == 2
    assert "--to" in refused.stderr
    assert await questions(url) == 1


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["y", "n", ""])
async def test_at_a_terminal_it_asks(file: Path, url: str, answer: str) -> None:
    def run() -> tuple[int, str]:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, "--config", str(file), *BACK, "base"],
            cwd=ROOT,
            env=environment(),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        os.write(ours, f"{answer}\n".encode())
        told, _ = process.communicate()
        os.close(ours)
        os.close(theirs)
        return process.returncode, told

    code, told = await asyncio.to_thread(run)
    assert "table questions: 1 row" in told
    assert "Continue? [y/N]" in told
    if answer == "y":
        assert (code, told.endswith("questions is at base\n")) == (0, True)
    else:
        assert (code, "nothing was changed" in told) == (1, True)
        assert await questions(url) == 1


@pytest.mark.slow
async def test_status_and_a_dry_run_tell_what_is_pending_and_change_nothing(
    file: Path, url: str
) -> None:
    assert (await command(file, *BACK, "0001", "--yes")).returncode == 0
    for _ in range(2):
        shown = await command(file, "migrate", "status")
        assert shown.returncode == 0, shown.stderr
        heading, users, auth, questions = shown.stdout.splitlines()
        assert heading.split() == ["module", "applied", "pending"]
        assert users.split() == ["users", "0001", "-"]
        assert auth.split() == ["auth", "0002", "-"]
        assert questions.split()[:3] == ["questions", "0001", "0002"]
        assert ", 0003 " in questions
        dry = await command(file, "migrate", "--dry-run")
        first, second = dry.stdout.splitlines()
        assert first.startswith("questions: 0002 ")
        assert second.startswith("questions: 0003 ")
    assert (await command(file, "migrate")).stdout == "migrated: questions\n"
    dry = await command(file, "migrate", "--dry-run")
    assert dry.stdout == "nothing to migrate\n"


@pytest.mark.slow
async def test_status_names_a_database_that_is_newer(file: Path, url: str) -> None:
    async with connected(url) as database, database.transaction() as session:
        change = "UPDATE alembic_version_questions SET version_num = '9999'"
        await session.execute(text(change))
    shown = await command(file, "migrate", "status")
    assert "newer than this program" in shown.stdout
    refused = await command(file, *BACK, "base", "--yes")
    assert_refused(refused, "newer than this program")


@pytest.mark.slow
def test_looking_at_a_database_that_is_not_there_does_not_make_it(
    tmp_path: Path,
) -> None:
    database = tmp_path / "new.db"
    file = write_config(tmp_path / "app.toml", f"sqlite+aiosqlite:///{database}")
    shown = vopros("--config", file, "migrate", "status")
    assert shown.stdout.splitlines()[1].split()[:2] == ["users", "-"]
    dry = vopros("--config", file, "migrate", "--dry-run")
    assert dry.stdout.startswith("users: 0001 ")
    assert not database.exists()


def test_an_option_of_the_wrong_command_is_not_ignored(tmp_path: Path) -> None:
    file = write_config(tmp_path / "app.toml", f"sqlite+aiosqlite:///{tmp_path}/x.db")
    down = ("down", "questions", "--to", "base", "--yes")
    refused = vopros("--config", file, "migrate", "--dry-run", *down)
    assert refused.returncode == 2
    assert "behind the subcommand" in refused.stderr
