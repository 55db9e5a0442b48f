"""`vopros accounts` beside a running server, on both databases (F29)."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Databases
from tests.support.api import PASSWORD, Api, assert_problem
from tests.support.config import write_config
from tests.support.process import assert_refused, serving, vopros

NEW = f"{PASSWORD}-new"


@pytest.fixture
async def file(databases: Databases, database_kind: str, tmp_path: Path) -> Path:
    """A configuration with a migrated database and a log for machines."""
    url = await databases.migrated(database_kind)
    return write_config(tmp_path / "app.toml", url, log='format = "json"')


def accounts(
    file: Path, *arguments: str | Path, stdin: str = ""
) -> tuple[str, list[dict[str, Any]]]:
    """Run a command that works; what it says, and what it tells the log."""
    done = vopros("--config", file, "accounts", *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    return done.stdout, [json.loads(line) for line in done.stderr.splitlines()]


@pytest.mark.slow
async def test_an_operator_looks_after_accounts_beside_a_running_server(
    file: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "password"
    kept.write_text(f"{NEW}\n")
    with serving("--config", file) as server:
        api = Api(server.url)
        ada = await api.account("Ada")

        def told(event: str, **more: str) -> list[dict[str, Any]]:
            about = {"user_id": ada.id, "by": "operator", "level": "info"}
            return [{"event": event} | about | more]

        def do(*arguments: str | Path, stdin: str = "") -> tuple[str, Any]:
            said, events = accounts(file, *arguments, stdin=stdin)
            for event in events:
                del event["timestamp"]
            return said, events

        assert do("deactivate", "ADA") == (
            "Ada is now inactive\n",
            told("security.account_deactivated"),
        )
        assert_problem(await api.get("/users/me", ada), 401, "invalid_token")
        assert_problem(await api.log_in("ada"), 401, "invalid_grant")
        assert do("deactivate", "ada") == ("Ada is now inactive\n", [])

        assert do("activate", "ada") == (
            "Ada is now active\n",
            told("security.account_activated"),
        )
        assert_problem(await api.get("/users/me", ada), 401, "invalid_token")
        back = await api.signed_in(ada.id, "ada")

        for given in (
            do("reset-password", "ada", stdin=f"{NEW}\n"),
            do("reset-password", "ada", "--password-file", kept),
        ):
            assert given == (
                "Ada has a new password and no sessions\n",
                told("security.password_reset"),
            )
        assert_problem(await api.get("/users/me", back), 401, "invalid_token")
        assert_problem(await api.log_in("ada"), 401, "invalid_grant")
        assert (await api.log_in("ada", NEW)).status_code == 200

        assert do("set-role", "ada", "admin") == (
            "Ada is now admin\n",
            told("security.role_set", role="admin"),
        )
        await api.close()


@pytest.mark.slow
async def test_accounts_are_listed_in_columns_newest_first_without_secrets(
    file: Path,
) -> None:
    for name in ("Grace", "ada", "bob"):
        accounts(file, "create-admin", name, stdin=f"{PASSWORD}\n")
    accounts(file, "set-role", "ada", "user")
    accounts(file, "deactivate", "ada")
    said, events = accounts(file, "list")
    assert events == []
    head, *lines = (line.split() for line in said.splitlines())
    assert head == ["id", "name", "role", "active", "created"]
    assert [line[:4] for line in lines] == [
        ["3", "bob", "admin", "yes"],
        ["2", "ada", "user", "no"],
        ["1", "Grace", "admin", "yes"],
    ]
    moment = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")
    assert all(len(line) == 5 and moment.fullmatch(line[4]) for line in lines)
    starts = {line.index(word) for line in said.splitlines() for word in line.split()}
    assert len(starts) == 5
    assert "argon2" not in said
    admins, _ = accounts(file, "list", "--role", "admin")
    assert [line.split()[1] for line in admins.splitlines()] == ["name", "bob", "Grace"]


@pytest.mark.slow
async def test_what_accounts_cannot_do_is_one_line(file: Path) -> None:
    accounts(file, "create-admin", "ada", stdin=f"{PASSWORD}\n")
    nobody, last = "There is no such user.", "The last administrator cannot go."
    roles = "the role must be one of user, admin"
    for words, stdin, *arguments in (
        (last, "", "deactivate", "ada"),
        (nobody, "", "deactivate", "nobody-here"),
        (nobody, "", "activate", "nobody-here"),
        (nobody, PASSWORD, "reset-password", "nobody-here"),
        ("at least 8", "short", "reset-password", "ada"),
        ("at most 128", "x" * 129, "reset-password", "ada"),
        ("user name", "ADA123456", "reset-password", "ada"),
        ("cannot be read", "", "reset-password", "ada", "--password-file", "nowhere"),
        (roles, "", "list", "--role", "root"),
    ):
        done = vopros("--config", file, "accounts", *arguments, stdin=stdin)
        assert_refused(done, words)
        assert done.stdout == ""
        assert not stdin or stdin not in done.stderr
    for extra in ([PASSWORD], ["--password", PASSWORD]):
        done = vopros("--config", file, "accounts", "reset-password", "ada", *extra)
        assert done.returncode == 2


@pytest.mark.slow
async def test_F29_of_some_first_administrators_at_once_there_is_one(
    file: Path,
) -> None:
    create = ["--config", str(file), "accounts", "create-admin"]
    done = await asyncio.gather(
        *[
            asyncio.to_thread(vopros, *create, name, stdin=f"{PASSWORD}\n")
            for name in ("chief", "Chief", "CHIEF", "chief")
        ]
    )
    refused = [each for each in done if each.returncode != 0]
    assert len(refused) == 3
    for each in refused:
        assert_refused(each, "Somebody has this user name already")
    said, _ = accounts(file, "list")
    (line,) = said.splitlines()[1:]
    assert line.split()[1].lower() == "chief"
    assert line.split()[2:4] == ["admin", "yes"]
