"""Who may make an account: anybody, or nobody but the operator."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.testing import Running
from tests.conftest import Databases, Recorder, make_admin, served
from tests.support.api import CANARY, PASSWORD, Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.hashing import Work
from tests.support.process import vopros


@pytest.fixture
async def file(databases: Databases, database_kind: str, tmp_path: Path) -> Path:
    """The configuration of a service that lets no newcomers in."""
    url = await databases.migrated(database_kind)
    return write_config(tmp_path / "app.toml", url, auth='registration = "closed"')


@pytest.fixture
async def closed(file: Path) -> AsyncIterator[tuple[Running, Api]]:
    async with served(file) as found:
        yield found


def modes(recorder: Recorder, seen: int) -> list[str]:
    """The modes that were told since."""
    lines = recorder.lines[seen:]
    told = [line for line in lines if line.startswith("auth.registration ")]
    return [mode for line in told for mode in ("open", "closed") if mode in line]


@pytest.mark.parametrize("mode", ["open", "closed"])
async def test_C11_the_mode_is_said_once_at_start(
    databases: Databases, tmp_path: Path, secrets_stay_inside: Recorder, mode: str
) -> None:
    url = await databases.migrated("sqlite")
    table = "" if mode == "open" else f'registration = "{mode}"'
    seen = len(secrets_stay_inside.lines)
    async with served(write_config(tmp_path / "app.toml", url, auth=table)) as (_, api):
        assert modes(secrets_stay_inside, seen) == [mode]
        registered = await api.register("ada")
        assert registered.status_code == (201 if mode == "open" else 403)


async def test_C11_where_registration_is_closed_nobody_makes_an_account(
    closed: tuple[Running, Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, api = closed
    work = Work(monkeypatch)
    assert_problem(await api.register("ada"), 403, "registration_closed")
    # Nobody looks at what was sent: a bad name or password is refused like a good one.
    for name, password in (("admin", PASSWORD), ("ada", "short"), ("x" * 99, CANARY)):
        answer = await api.register(name, password, role="admin")
        problem = assert_problem(answer, 403, "registration_closed")
        assert "errors" not in problem
    assert work.since_last_look() == (0, 0)
    assert_problem(await api.log_in("ada"), 401, "invalid_grant")


async def test_where_registration_is_closed_whoever_is_in_stays_in(
    closed: tuple[Running, Api],
) -> None:
    service, api = closed
    admin: Account = await make_admin(service, api)
    assert (await api.get("/users/me", admin)).status_code == 200
    assert (await api.log_in(admin.username)).status_code == 200


@pytest.mark.slow
async def test_where_registration_is_closed_the_operator_makes_an_administrator(
    file: Path, closed: tuple[Running, Api]
) -> None:
    _, api = closed
    command = ("--config", file, "accounts", "create-admin", "chief")
    made = await asyncio.to_thread(vopros, *command, stdin=f"{PASSWORD}\n")
    assert made.returncode == 0, made.stderr
    assert (await api.log_in("chief")).status_code == 200


async def test_that_registration_may_be_closed_is_documented(api: Api) -> None:
    document = (await api.get("/openapi.json")).json()
    forbidden = document["paths"]["/auth/register"]["post"]["responses"]["403"]
    shown = forbidden["content"]["application/problem+json"]["examples"]
    assert shown.keys() == {"registration_closed"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["", "OPEN", "shut"])
def test_there_is_no_other_mode(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "app.toml"
    url = f"sqlite+aiosqlite:///{tmp_path}/vopros.db"
    write_config(file, url, auth=f'registration = "{mode}"')
    checked = vopros("--config", file, "config", "check")
    assert checked.returncode == 78
    assert "[auth] registration" in checked.stdout + checked.stderr
