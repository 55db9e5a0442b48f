"""Changing one's password (Q04, F36)."""

import asyncio

from httpx import Response

from tests.support.api import PASSWORD, Account, Api, assert_problem
from tests.support.hashing import Work

NEW = f"{PASSWORD}-new"


async def change(api: Api, who: Account, current: str, new: str) -> Response:
    body = {"current_password": current, "new_password": new}
    return await api.http.put("/auth/password", json=body, headers=who.auth)


async def test_Q04_a_new_password_takes_the_place_of_the_old(
    api: Api, ada: Account
) -> None:
    changed = await change(api, ada, PASSWORD, NEW)
    assert (changed.status_code, changed.content) == (204, b"")
    assert_problem(await api.log_in(ada.username, PASSWORD), 401, "invalid_grant")
    assert (await api.log_in(ada.username, NEW)).status_code == 200


async def test_Q04_the_current_password_is_needed(
    api: Api, ada: Account, work: Work
) -> None:
    wrong = await change(api, ada, f"{PASSWORD}!", NEW)
    assert_problem(wrong, 403, "wrong_password")
    assert work.since_last_look() == (0, 1)
    body = {"new_password": NEW}
    missing = await api.http.put("/auth/password", json=body, headers=ada.auth)
    assert_problem(missing, 422)
    assert_problem(await api.http.put("/auth/password", json=body), 401)
    assert (await api.log_in(ada.username, PASSWORD)).status_code == 200


async def test_Q04_the_same_password_is_no_new_one(api: Api, ada: Account) -> None:
    problem = assert_problem(await change(api, ada, PASSWORD, PASSWORD), 422)
    (error,) = problem["errors"]
    assert (error["loc"], error["code"]) == (["body", "new_password"], "same_password")


async def test_R05_a_new_password_must_not_be_easily_guessed(
    api: Api, ada: Account
) -> None:
    for new in ("passwordpassword", f"{ada.username}-{ada.username}", "vopros2026"):
        problem = assert_problem(await change(api, ada, ada.password, new), 422)
        assert problem["errors"][0]["code"] == "password_blocklisted"


async def test_Q04_a_refused_password_ends_no_session(api: Api, ada: Account) -> None:
    other = await api.signed_in(ada.id, ada.username)
    for current, new in (("wrong", NEW), (PASSWORD, PASSWORD), (PASSWORD, "short")):
        assert (await change(api, ada, current, new)).status_code in (403, 422)
    assert (await api.get("/users/me", other)).status_code == 200


async def test_of_two_changes_at_once_one_wins_and_ends_the_other_session(
    api: Api, ada: Account
) -> None:
    other = await api.signed_in(ada.id, ada.username)
    answers = await asyncio.gather(
        change(api, ada, PASSWORD, f"{NEW}-1"), change(api, other, PASSWORD, f"{NEW}-2")
    )
    codes = [answer.status_code for answer in answers]
    assert sorted(codes)[0] == 204
    assert sorted(codes)[1] in (401, 403, 409)
    winner, loser = (ada, other) if codes[0] == 204 else (other, ada)
    assert (await api.get("/users/me", winner)).status_code == 200
    assert_problem(await api.get("/users/me", loser), 401, "invalid_token")
    kept = f"{NEW}-1" if codes[0] == 204 else f"{NEW}-2"
    assert (await api.log_in(ada.username, kept)).status_code == 200


async def test_F36_no_login_with_the_old_password_outlives_its_change(
    api: Api, ada: Account
) -> None:
    changing = asyncio.create_task(change(api, ada, PASSWORD, NEW))
    logins = await asyncio.gather(*[api.log_in(ada.username) for _ in range(4)])
    assert (await changing).status_code == 204
    for login in logins:
        if login.status_code == 401:
            continue
        bearer = {"Authorization": f"Bearer {login.json()['access_token']}"}
        answer = await api.http.get("/users/me", headers=bearer)
        assert_problem(answer, 401, "invalid_token")
