"""What an operator does with accounts, without the command line (F29)."""

import asyncio
import tracemalloc
from pathlib import Path

import pytest
from sqlalchemy import text

from core.db import Database
from core.errors import Invalid
from core.testing import Running
from modules.auth.accounts import Accounts
from modules.users.public import LastAdmin, Role, User, UsernameTaken, UserNotFound
from tests.conftest import Databases, served
from tests.support.api import PASSWORD, Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.hashing import Work

NEW = f"{PASSWORD}-new"


@pytest.fixture
def accounts(service: Running) -> Accounts:
    found: Accounts = service.service(Accounts)
    return found


@pytest.mark.slow
async def test_F29_C10_of_fifty_first_administrators_of_one_name_there_is_one(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    async with served(write_config(tmp_path / "app.toml", url)) as (service, api):
        accounts = service.service(Accounts)
        names = ["Chief" if n % 2 else "chief" for n in range(50)]
        made = await asyncio.gather(
            *[accounts.create_admin(name, PASSWORD) for name in names],
            return_exceptions=True,
        )
        (first,) = (user for user in made if isinstance(user, User))
        refusals = [each for each in made if each is not first]
        assert [type(each) for each in refusals] == [UsernameTaken] * 49
        chief = await api.signed_in(first.id, "chief")
        (only,) = (await api.get("/users", chief)).json()["items"]
        assert (only["id"], only["role"]) == (first.id, "admin")


async def test_a_reset_password_is_the_only_one_and_no_session_outlives_it(
    accounts: Accounts, api: Api, ada: Account
) -> None:
    other = await api.signed_in(ada.id, ada.username)
    bob = await api.account()
    await accounts.reset_password(ada.username.upper(), NEW)
    for who in (ada, other):
        assert_problem(await api.get("/users/me", who), 401, "invalid_token")
    assert (await api.get("/users/me", bob)).status_code == 200
    assert_problem(await api.log_in(ada.username), 401, "invalid_grant")
    assert (await api.log_in(ada.username, NEW)).status_code == 200


async def test_F36_no_login_of_that_moment_outlives_a_reset_password(
    accounts: Accounts, api: Api, ada: Account
) -> None:
    resetting = asyncio.create_task(accounts.reset_password(ada.username, NEW))
    logins = await asyncio.gather(*[api.log_in(ada.username) for _ in range(20)])
    await resetting
    for login in logins:
        if login.status_code == 200:
            bearer = {"Authorization": f"Bearer {login.json()['access_token']}"}
            answer = await api.http.get("/users/me", headers=bearer)
            assert_problem(answer, 401, "invalid_token")


@pytest.mark.parametrize("password", ["short", "password1", "x" * 129, "{name}123"])
async def test_a_reset_password_keeps_the_rules_and_a_refused_one_changes_nothing(
    accounts: Accounts, api: Api, ada: Account, work: Work, password: str
) -> None:
    with pytest.raises(Invalid):
        await accounts.reset_password(ada.username, password.format(name=ada.username))
    assert work.since_last_look() == (0, 0)
    assert (await api.get("/users/me", ada)).status_code == 200
    assert (await api.log_in(ada.username)).status_code == 200


async def test_whoever_does_not_exist_is_not_changed(accounts: Accounts) -> None:
    for change in (
        accounts.set_role("nobody.here", Role.ADMIN),
        accounts.set_active("nobody.here", False),
        accounts.set_active("nobody.here", True),
        accounts.reset_password("nobody.here", PASSWORD),
    ):
        with pytest.raises(UserNotFound):
            await change


async def test_the_last_administrator_is_neither_shut_out_nor_demoted(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    async with served(write_config(tmp_path / "app.toml", url)) as (service, _):
        accounts = service.service(Accounts)
        await accounts.create_admin("first", PASSWORD)
        await accounts.create_admin("second", PASSWORD)
        await accounts.set_active("second", False)
        for _ in range(2):
            with pytest.raises(LastAdmin):
                await accounts.set_active("first", False)
            with pytest.raises(LastAdmin):
                await accounts.set_role("first", Role.USER)
        await accounts.set_active("second", True)
        assert not (await accounts.set_active("first", False)).is_active


MANY = text("""
    INSERT INTO users (username, username_key)
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
    SELECT 'many' || i, 'many' || i FROM n
""")


@pytest.mark.slow
async def test_everybody_is_listed_once_and_few_are_in_memory_at_a_time(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    async with served(write_config(tmp_path / "app.toml", url)) as (service, _):
        accounts = service.service(Accounts)
        async with service.service(Database).transaction() as session:
            await session.execute(MANY)
        chief = await accounts.create_admin("chief", PASSWORD)
        (only,) = [user async for user in accounts.everybody(Role.ADMIN)]
        assert only.id == chief.id
        count, before = 0, chief.id + 1
        tracemalloc.start()
        try:
            async for user in accounts.everybody():
                assert user.id < before
                count, before = count + 1, user.id
            _, most_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert count == 30_001
    # A page is 1,000 users; all of them take 15 MB.
    assert most_bytes < 5_000_000
