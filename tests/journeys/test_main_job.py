"""The main job, end to end: register, authorize, ask, the last three, delete."""

from tests.support.api import Account, Api, assert_problem
from tests.support.upstream import KEY, Upstream


async def test_the_journey_of_a_person(
    api: Api, upstream: Upstream, admin: Account
) -> None:
    registered = await api.register("Grace.Hopper")
    assert registered.status_code == 201
    assert registered.json().keys() == {"id", "username", "role", "created_at"}
    grace = await api.signed_in(registered.json()["id"], "grace.hopper")

    me = (await api.get("/users/me", grace)).json()
    assert me == registered.json() | {"username": "Grace.Hopper"}

    asked = [await api.ask(grace, f"Question {n}?") for n in range(1, 5)]
    assert [answer.status_code for answer in asked] == [201] * 4
    last = asked[-1].json()
    assert last["answer"] == "Answer to: Question 4?"
    assert (last["status"], last["provider"], last["model"]) == (
        "answered",
        "main",
        "fake-1",
    )
    assert last["usage"] == {"prompt_tokens": 12, "completion_tokens": 34}
    assert last["asked_at"] <= last["answered_at"]
    assert upstream.requests[-1].header("authorization") == f"Bearer {KEY}"

    newest = await api.newest(grace)
    assert [question["content"] for question in newest] == [
        "Question 4?",
        "Question 3?",
        "Question 2?",
    ]
    assert newest[0] == last

    seen = (await api.get("/questions", admin, user_id=grace.id)).json()
    assert [item["username"] for item in seen["items"]] == ["Grace.Hopper"] * 4

    gone = await api.http.delete("/users/me", headers=grace.auth)
    assert gone.status_code == 204
    assert_problem(await api.get("/users/me", grace), 401, "invalid_token")
    left = (await api.get("/questions", admin, user_id=grace.id)).json()
    assert left == {"items": [], "next_cursor": None}
