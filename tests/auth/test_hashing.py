"""How passwords are hashed, and hashes of another time or place (A10, R06, T05)."""

import asyncio
import contextlib
import logging
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import argon2
import bcrypt
import pytest
from sqlalchemy import text

from core.db import Database
from core.testing import Running
from modules.auth.passwords import Passwords
from modules.auth.settings import AuthSettings
from tests.conftest import Databases, served
from tests.support.api import PASSWORD, Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.hashing import Work

CHEAP = "$argon2id$v=19$m=8192,t=1,p=1$"


def bcrypt_of(password: str, ident: str = "2b") -> str:
    """As the systems of its time made it, that looked at 72 bytes and no more."""
    salt = bcrypt.gensalt(4, prefix=b"2b")
    made = bcrypt.hashpw(password.encode()[:72], salt).decode()
    return made.replace("$2b$", f"${ident}$")


async def credential(database: Database, who: Account) -> tuple[str, datetime]:
    async with database.reading() as session:
        statement = "SELECT password_hash, changed_at FROM auth_credentials"
        where = f"{statement} WHERE user_id = :id"
        found = (await session.execute(text(where), {"id": who.id})).one()
        return found[0], found[1]


async def put(database: Database, who: Account, password_hash: str) -> None:
    """In the place of a hash that stays a secret: the change is not told."""
    async with database.transaction() as session:
        statement = "UPDATE auth_credentials SET password_hash = :h WHERE user_id = :id"
        await session.execute(text(statement), {"h": password_hash, "id": who.id})


@pytest.fixture
def stored(service: Running) -> Database:
    found: Database = service.service(Database)
    return found


async def test_C7_a_password_is_hashed_with_argon2id_as_configured(
    stored: Database, ada: Account, api: Api, work: Work
) -> None:
    before, _ = await credential(stored, ada)
    assert before.startswith(CHEAP)
    assert (await api.log_in(ada.username)).status_code == 200
    assert work.since_last_look() == (0, 1)
    assert (await credential(stored, ada))[0] == before


@pytest.mark.parametrize("ident", ["2a", "2b", "2y"])
async def test_a_bcrypt_hash_verifies_and_is_upgraded_at_the_next_login(
    stored: Database, ada: Account, api: Api, work: Work, ident: str
) -> None:
    old = bcrypt_of(PASSWORD, ident)
    await put(stored, ada, old)
    _, changed_at = await credential(stored, ada)
    work.since_last_look()

    refused = await api.log_in(ada.username, f"{PASSWORD}!")
    assert_problem(refused, 401, "invalid_grant")
    assert work.since_last_look() == (0, 1)
    assert (await credential(stored, ada))[0] == old

    upgraded = await api.signed_in(ada.id, ada.username)
    assert work.since_last_look() == (1, 1)
    made, at = await credential(stored, ada)
    assert made.startswith(CHEAP)
    assert at == changed_at
    # Whoever was signed in stays so: it is the same password.
    for who in (ada, upgraded):
        assert (await api.get("/users/me", who)).status_code == 200

    assert (await api.log_in(ada.username)).status_code == 200
    assert_problem(await api.log_in(ada.username, f"{PASSWORD}!"), 401)
    assert work.since_last_look() == (0, 2)
    assert (await credential(stored, ada))[0] == made


async def test_R06_bcrypt_saw_72_bytes_and_from_the_upgrade_on_every_byte_counts(
    stored: Database, ada: Account, api: Api
) -> None:
    long = "Zq7-" * 18 + "and so on"
    # Cut in the middle of a character, as the others did.
    for password in (long, "x" + "ж" * 60):
        await put(stored, ada, bcrypt_of(password))
        assert_problem(await api.log_in(ada.username, password[:30]), 401)
        assert (await api.log_in(ada.username, password)).status_code == 200
        assert (await credential(stored, ada))[0].startswith(CHEAP)
        assert (await api.log_in(ada.username, password)).status_code == 200
        assert_problem(await api.log_in(ada.username, f"{password[:-1]}!"), 401)
        assert_problem(await api.log_in(ada.username, password[:-1]), 401)


async def test_the_threads_of_a_service_end_with_it(
    databases: Databases, tmp_path: Path
) -> None:
    def hashing() -> set[threading.Thread]:
        alive = threading.enumerate()
        return {thread for thread in alive if thread.name.startswith("password")}

    before = hashing()
    url = await databases.migrated("sqlite")
    async with served(write_config(tmp_path / "app.toml", url)) as (_, api):
        await api.account()
        assert hashing() - before
    assert not hashing() - before


@pytest.mark.slow
async def test_C7_a_hash_of_other_parameters_is_upgraded_at_the_next_login(
    databases: Databases, database_kind: str, tmp_path: Path, work: Work
) -> None:
    """Memory and rounds go up, and down again."""
    url = await databases.migrated(database_kind)
    file = tmp_path / "app.toml"
    name = ""
    seen: list[tuple[str, datetime]] = []
    for memory, rounds in ((8192, 1), (9216, 1), (9216, 2), (8192, 1)):
        write_config(file, url)
        changed = file.read_text().replace("= 8192", f"= {memory}")
        file.write_text(changed.replace("rounds = 1", f"rounds = {rounds}"))
        async with served(file) as (service, api):
            if not name:
                name = (await api.account()).username
            work.since_last_look()
            ada = await api.signed_in(1, name)
            assert work.since_last_look() == (0 if not seen else 1, 1)
            seen.append(await credential(service.service(Database), ada))
            assert seen[-1][0].startswith(f"$argon2id$v=19$m={memory},t={rounds},p=1$")
            assert (await api.log_in(name)).status_code == 200
            assert work.since_last_look() == (0, 1)
    assert len({password_hash for password_hash, _ in seen}) == 4
    assert len({changed_at for _, changed_at in seen}) == 1


@pytest.mark.parametrize("made", ["$argon2i$", "$argon2d$"])
async def test_another_kind_of_argon2_is_upgraded(
    stored: Database, ada: Account, api: Api, made: str
) -> None:
    kind = argon2.Type.I if made == "$argon2i$" else argon2.Type.D
    hasher = argon2.PasswordHasher(1, 8192, 1, type=kind)
    await put(stored, ada, hasher.hash(PASSWORD))
    assert (await api.log_in(ada.username)).status_code == 200
    assert (await credential(stored, ada))[0].startswith(CHEAP)


async def test_of_logins_at_the_same_time_all_hold_though_one_upgrades(
    stored: Database, ada: Account, api: Api
) -> None:
    await put(stored, ada, bcrypt_of(PASSWORD))
    logins = await asyncio.gather(*[api.log_in(ada.username) for _ in range(5)])
    assert [login.status_code for login in logins] == [200] * 5
    for login in logins:
        who = Account(ada.id, ada.username, login.json()["access_token"])
        assert (await api.get("/users/me", who)).status_code == 200
    assert (await credential(stored, ada))[0].startswith(CHEAP)


@pytest.mark.slow
async def test_F36_an_upgrade_brings_no_old_password_back(
    stored: Database, ada: Account, api: Api
) -> None:
    """Logins with the old one, while it is changed, leave the new one in place."""
    new = f"{PASSWORD}-new"
    body = {"current_password": PASSWORD, "new_password": new}
    for _ in range(5):
        who = await api.account()
        await put(stored, who, bcrypt_of(PASSWORD))
        changing = api.http.put("/auth/password", json=body, headers=who.auth)
        changed, *logins = await asyncio.gather(
            changing, *[api.log_in(who.username) for _ in range(4)]
        )
        # An upgrade that came first has the change begin again.
        assert changed.status_code in (204, 409)
        kept = new if changed.status_code == 204 else PASSWORD
        assert (await api.log_in(who.username, kept)).status_code == 200
        for login in logins:
            is_open = login.status_code == 200
            assert is_open or login.status_code == 401
            if is_open and changed.status_code == 204:
                bearer = {"Authorization": f"Bearer {login.json()['access_token']}"}
                answer = await api.http.get("/users/me", headers=bearer)
                assert_problem(answer, 401, "invalid_token")


async def test_F36_a_password_changed_during_an_upgrade_stays(
    databases: Databases, tmp_path: Path
) -> None:
    """The change is committed when the old one is verified, and not yet upgraded."""
    url = await databases.migrated("postgresql")
    async with served(write_config(tmp_path / "app.toml", url)) as (service, api):
        stored: Database = service.service(Database)
        ada, new = await api.account(), f"{PASSWORD}-new"
        await put(stored, ada, bcrypt_of(PASSWORD))
        async with stored.transaction() as session:
            locking = text("SELECT 1 FROM users WHERE id = :id FOR UPDATE")
            await session.execute(locking, {"id": ada.id})
            login = asyncio.create_task(api.log_in(ada.username))
            await somebody_waits_for_a_lock(stored)
            changing = "UPDATE auth_credentials SET password_hash = :h"
            await session.execute(text(changing), {"h": bcrypt_of(new)})
        assert_problem(await login, 401, "invalid_grant")
        assert (await api.log_in(ada.username, new)).status_code == 200


@pytest.mark.slow
async def test_an_upgrade_and_a_deletion_do_not_wait_for_each_other(
    databases: Databases, tmp_path: Path
) -> None:
    """The account is deleted while a login waits for it: one of the two must go on."""
    url = await databases.migrated("postgresql")
    async with served(write_config(tmp_path / "app.toml", url)) as (service, api):
        stored: Database = service.service(Database)
        ada = await api.account()
        await put(stored, ada, bcrypt_of(PASSWORD))
        async with stored.transaction() as session:
            locking = text("SELECT 1 FROM users WHERE id = :id FOR UPDATE")
            await session.execute(locking, {"id": ada.id})
            login = asyncio.create_task(api.log_in(ada.username))
            await somebody_waits_for_a_lock(stored)
            deleting = text("DELETE FROM users WHERE id = :id")
            await session.execute(deleting, {"id": ada.id})
        assert_problem(await login, 401, "invalid_grant")


async def somebody_waits_for_a_lock(database: Database) -> None:
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    async with asyncio.timeout(60):
        while True:
            async with database.reading() as session:
                if await session.scalar(waiting):
                    return
            await asyncio.sleep(0.01)


UNREADABLE = [
    "",
    "x",
    PASSWORD[::-1],
    "{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=",
    "$2x$04$5BJqKfqMQvV7nS.yUguNcueVirQqDBGaLXSqj.rs.pZPlNR0UX/HK",
    "$2b$04$5BJqKfqMQvV7nS.yUguNcueVirQqDBGaLXSqj.rs.pZPlNR0UX",
    "$2b$99$5BJqKfqMQvV7nS.yUguNcueVirQqDBGaLXSqj.rs.pZPlNR0UX/HK",
    "$2b$04$",
    "$2b$04",
    "$2b$",
    "$2b$04$" + "é" * 53,
    "$argon2id$",
    f"{CHEAP}YWJjZGVmZ2hpamtsbW5vcA",
    f"{CHEAP}YWJjZGVmZ2hpamtsbW5vcA$",
    f"{CHEAP}YWJj$ZGVm$aGlq",
    f"{CHEAP}é$é",
    "$argon2id$v=19$m=4294967295,t=1,p=1$YWJjZGVmZ2hpamtsbW5vcA$YWJjZGVmZ2hpamts",
    "$argon2id$v=19$m=1,t=1,p=1$YWJjZGVmZ2hpamtsbW5vcA$YWJjZGVmZ2hpamts",
    "$argon2id$v=19$m=8192,t=1,p=1,keyid=a$YWJjZGVmZ2hpamtsbW5vcA$YWJjZGVmZ2hpamts",
    "$argon2z$v=19$m=8192,t=1,p=1$YWJjZGVmZ2hpamtsbW5vcA$YWJjZGVmZ2hpamts",
    "$pbkdf2-sha256$29000$N2YMIWQsBWBMae09x1jrPQ$1t8iyB2A.WF/Z5JZv.lfCIhXXN33N23OSgQ",
    "$6$rounds=5000$abc$abcdef",
]


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Any:
    """What auth has logged about hashes, each with all its own fields."""

    def found() -> list[tuple[str, dict[str, Any]]]:
        plain = {"message", *logging.makeLogRecord({}).__dict__}
        return [
            (r.getMessage(), {k: v for k, v in r.__dict__.items() if k not in plain})
            for r in caplog.records
            if r.name == "modules.auth.passwords"
        ]

    return found


@pytest.mark.parametrize("mangled", UNREADABLE, ids=range(len(UNREADABLE)))
async def test_A10_a_hash_that_cannot_be_read_is_like_a_wrong_password(
    stored: Database,
    ada: Account,
    api: Api,
    work: Work,
    complaints: Any,
    mangled: str,
) -> None:
    expected = await api.log_in(ada.username, f"{PASSWORD}!")
    hers = work.last_hash
    await put(stored, ada, mangled)
    work.since_last_look()
    answer = await api.log_in(ada.username)
    problem = assert_problem(answer, 401, "invalid_grant")
    differ = ("request_id", "instance")
    assert {k: v for k, v in problem.items() if k not in differ} == {
        k: v for k, v in expected.json().items() if k not in differ
    }
    hashed, verified = work.since_last_look()
    # argon2 itself says no to some, before it has done anything.
    assert hashed == 0
    assert verified in (1, 2)
    assert work.last_hash not in (hers, mangled)
    (event, fields), *more = complaints()
    assert (event, more) == ("auth.hash_unreadable", [])
    fields.pop("request_id", None)
    assert fields == {"user_id": ada.id}
    assert (await credential(stored, ada))[0] == mangled

    body = {"current_password": PASSWORD, "new_password": f"{PASSWORD}-new"}
    changed = await api.http.put("/auth/password", json=body, headers=ada.auth)
    assert_problem(changed, 403, "wrong_password")


async def test_A10_what_stands_for_nobodys_hash_is_made_once_and_as_configured(
    work: Work,
) -> None:
    settings = AuthSettings(hash_memory_kib=9216, hash_rounds=2)
    with contextlib.closing(Passwords(settings)) as passwords:
        assert work.since_last_look() == (1, 0)
        # Nor do the words open anything that it was made of.
        for password in (PASSWORD, "nobody has this password"):
            verified = await passwords.verify(password, None)
            assert not verified.matches
            assert not verified
        assert work.since_last_look() == (0, 2)
        assert work.last_hash.startswith("$argon2id$v=19$m=9216,t=2,p=1$")
