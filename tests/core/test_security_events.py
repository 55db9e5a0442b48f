"""What the log tells of who may do and see what (E13)."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.module import ROOT
from core.testing import Running
from modules.auth.accounts import Accounts
from modules.users.public import Role
from tests.conftest import Databases
from tests.support.api import PASSWORD, Account, Api
from tests.support.config import write_config
from tests.support.process import serving, vopros
from tests.support.told import Told

NEW = f"{PASSWORD}-new"
QUESTION = "Whose secret is it?"


@pytest.fixture
def told() -> Iterator[Told]:
    found = Told()
    logging.getLogger().addHandler(found)
    yield found
    logging.getLogger().removeHandler(found)


def read_by(admin: Account, what: str, *people: Account) -> dict[str, Any]:
    ids = sorted(who.id for who in people)
    event = {"event": "security.admin_read", "admin_id": admin.id}
    return event | {"what": what, "user_ids": ids}


async def test_E13_whose_data_an_administrator_is_shown_is_told(
    api: Api, admin: Account, ada: Account, told: Told
) -> None:
    asked = [(await api.ask(ada, QUESTION)).json()["id"] for _ in range(2)]
    bob = await api.account()
    for path, event in (
        (f"/users/{ada.id}", read_by(admin, "user", ada)),
        (f"/users?name={ada.username}", read_by(admin, "users", ada)),
        ("/users?limit=2", read_by(admin, "users", ada, bob)),
        # The administrator is on this page as well, and is no news.
        ("/users?limit=3", read_by(admin, "users", ada, bob)),
        (f"/questions/{asked[0]}", read_by(admin, "question", ada)),
        (f"/questions?user_id={ada.id}", read_by(admin, "questions", ada)),
    ):
        answer = await api.get(path, admin)
        assert answer.status_code == 200
        assert told.about(answer) == [event]


async def test_E13_what_shows_nobody_else_is_not_told(
    api: Api, admin: Account, ada: Account, told: Told
) -> None:
    own = (await api.ask(admin, QUESTION)).json()["id"]
    theirs = (await api.ask(ada, QUESTION)).json()["id"]
    bob = await api.account()
    for who, path, status in (
        (admin, f"/users/{admin.id}", 200),
        (admin, "/users/me", 200),
        (admin, f"/users?name={admin.username}", 200),
        (admin, f"/questions/{own}", 200),
        (admin, "/questions/me", 200),
        (admin, f"/questions?user_id={admin.id}", 200),
        (admin, f"/questions?user_id={bob.id}", 200),
        (admin, f"/users/{2**62}", 404),
        (admin, f"/questions/{2**62}", 404),
        (admin, "/users?limit=0", 422),
        (admin, "/providers", 200),
        (ada, "/users/me", 200),
        (ada, f"/questions/{theirs}", 200),
        (ada, f"/questions/{own}", 404),
    ):
        answer = await api.get(path, who)
        assert answer.status_code == status, answer.text
        assert told.about(answer) == []


async def test_E13_who_tries_what_is_for_administrators_is_told(
    api: Api, admin: Account, ada: Account, told: Told
) -> None:
    for method, path, route in (
        ("GET", "/users?name=x", "/users"),
        ("GET", f"/users/{admin.id}", "/users/{user_id}"),
        ("PATCH", f"/users/{admin.id}", "/users/{user_id}"),
        ("GET", "/questions", "/questions"),
        ("GET", "/providers", "/providers"),
    ):
        answer = await api.http.request(
            method, path, json={"role": QUESTION}, headers=ada.auth
        )
        assert answer.status_code == 403
        event = {"event": "security.denied", "user_id": ada.id}
        assert told.about(answer) == [event | {"method": method, "route": route}]
        assert told.records[-1].levelname == "WARNING"


async def test_E13_what_becomes_of_an_account_is_told_with_who_did_it(
    api: Api, admin: Account, told: Told
) -> None:
    name = "e13.account"

    def event(name: str, **fields: Any) -> dict[str, Any]:
        return {"event": f"security.{name}", "user_id": number} | fields

    registered = await api.register(name)
    number = registered.json()["id"]
    assert told.about(registered) == [event("account_created", role="user", by="self")]
    assert told.about(await api.log_in(name)) == [event("logged_in")]
    assert told.about(await api.log_in(name, NEW)) == [event("login_refused")]
    nobody = await api.log_in("nobody.here")
    assert told.about(nobody) == [event("login_refused") | {"user_id": None}]
    ada = await api.signed_in(number, name)
    body = {"current_password": NEW, "new_password": f"{NEW}er"}
    wrong = await api.http.put("/auth/password", json=body, headers=ada.auth)
    assert told.about(wrong) == [event("password_refused")]
    body = {"current_password": PASSWORD, "new_password": NEW}
    changed = await api.http.put("/auth/password", json=body, headers=ada.auth)
    assert told.about(changed) == [event("password_changed")]

    seen = read_by(admin, "user", ada)
    by = {"by": "admin", "admin_id": admin.id}
    for state, wanted in (
        (False, [event("account_deactivated", **by), seen]),
        (False, [seen]),
        (None, [seen]),
        (True, [event("account_activated", **by), seen]),
        (True, [seen]),
    ):
        answer = await api.http.patch(
            f"/users/{number}", json={"is_active": state}, headers=admin.auth
        )
        assert told.about(answer) == wanted

    ada = await api.signed_in(number, name, NEW)
    gone = await api.http.delete("/users/me", headers=ada.auth)
    assert told.about(gone) == [event("account_deleted", by="self")]
    again = await api.http.delete("/users/me", headers=ada.auth)
    assert told.about(again) == []


async def test_E13_a_refresh_token_that_came_again_is_told_while_it_ends_something(
    api: Api, ada: Account, told: Told
) -> None:
    # The grandparent of a token: for its parent there is a grace.
    token = ada.refresh_token
    for _ in range(2):
        granted = await api.refresh(token)
        assert told.about(granted) == []
        token = granted.json()["refresh_token"]
    refused = {"event": "security.refresh_refused", "user_id": ada.id}
    reused, *rest = told.about(await api.refresh(ada.refresh_token))
    assert rest == [refused]
    assert reused.keys() == {"event", "user_id", "session_id"}
    assert reused["event"] == "security.refresh_reused"
    assert reused["user_id"] == ada.id
    assert told.about(await api.refresh(ada.refresh_token)) == [refused]
    unknown = told.about(await api.refresh("vopros_rt_" + "A" * 43))
    assert unknown == [refused | {"user_id": None}]


async def test_E13_the_end_of_a_session_is_told(
    api: Api, ada: Account, told: Told
) -> None:
    first, other = [await api.signed_in(ada.id, ada.username) for _ in range(2)]
    shown = (await api.get("/auth/sessions", other)).json()
    (current,) = (each["id"] for each in shown if each["is_current"])
    for method, path, who, event in (
        ("POST", "/auth/logout", first, "session_ended"),
        ("DELETE", f"/auth/sessions/{current}", ada, "session_ended"),
        ("POST", "/auth/logout-all", ada, "sessions_ended"),
    ):
        answer = await api.http.request(method, path, headers=who.auth)
        (only,) = told.about(answer)
        assert (only["event"], only["user_id"]) == (f"security.{event}", ada.id)
        assert ("session_id" in only) == (event == "session_ended")
        if method == "DELETE":
            assert only["session_id"] == current


async def test_E13_what_did_not_happen_is_not_told(
    api: Api, admin: Account, ada: Account, told: Told
) -> None:
    for user_id, status in ((admin.id, 409), (2**62, 404)):
        body = {"is_active": False}
        answer = await api.http.patch(
            f"/users/{user_id}", json=body, headers=admin.auth
        )
        assert (answer.status_code, told.about(answer)) == (status, [])
    assert told.about(await api.register(ada.username)) == []
    assert told.about(await api.register("e13.nobody", "short")) == []


async def test_E13_no_event_holds_a_name_a_password_a_token_or_a_question(
    service: Running, api: Api, admin: Account, told: Told
) -> None:
    accounts = service.service(Accounts)
    ada = await api.account()
    asked = (await api.ask(ada, QUESTION)).json()
    for path in ("/users", f"/users/{ada.id}", f"/questions/{asked['id']}"):
        await api.get(path, admin)
        await api.get(path, ada)
    await api.get("/questions", admin, user_id=ada.id)
    await api.get("/users", admin, name=ada.username)
    for is_active in (False, True):
        await accounts.set_active(ada.username, is_active)
    await accounts.set_role(ada.username, Role.ADMIN)
    await accounts.reset_password(ada.username, NEW)
    await api.log_in(ada.username)
    back = await api.signed_in(ada.id, ada.username, NEW)
    await api.http.delete("/users/me", headers=back.auth)
    lines = [repr(record.__dict__) for record in told.records]
    assert len(lines) >= 12
    hidden = [who.token for who in (ada, admin, back)]
    hidden += [PASSWORD, NEW, QUESTION, asked["answer"], ada.username, admin.username]
    for line in lines:
        assert not any(word in line for word in hidden), line


@pytest.mark.slow
async def test_E13_a_server_and_its_operator_tell_it_in_one_way(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    file = write_config(tmp_path / "app.toml", url, log='format = "json"')
    create = ["accounts", "create-admin", "chief"]
    with serving("--config", file) as server:
        made = vopros("--config", file, *create, stdin=f"{PASSWORD}\n")
        api = Api(server.url)
        ada = await api.account()
        chief = await api.signed_in(1, "chief")
        seen = await api.get(f"/users/{ada.id}", chief)
        await api.close()
        server.end()
    (line,) = (json.loads(line) for line in made.stderr.splitlines())
    del line["timestamp"]
    assert line == {
        "event": "security.account_created",
        "level": "info",
        "user_id": 1,
        "role": "admin",
        "by": "operator",
    }
    lines = [json.loads(line) for line in server.log.splitlines()]
    (read,) = (line for line in lines if line["event"] == "security.admin_read")
    del read["timestamp"]
    assert read == read_by(chief, "user", ada) | {
        "level": "info",
        "request_id": seen.headers["x-request-id"],
    }


def test_E13_every_security_event_is_explained_in_both_readmes() -> None:
    name = re.compile(r"[\"`](security\.[a-z_]+)[\"`]")
    code = [
        *(ROOT / "core").glob("*.py"),
        *ROOT.glob("modules/*/*.py"),
        *(ROOT / "providers").glob("*.py"),
    ]
    logged = {event for file in code for event in name.findall(file.read_text())}
    assert len(logged) >= 11
    for readme in ("README.md", "README.ru.md"):
        text = (ROOT / readme).read_text(encoding="utf-8")
        rows = [line for line in text.splitlines() if line.startswith("| `security.")]
        told = [event for row in rows for event in name.findall(row)]
        assert sorted(told) == sorted(logged)
