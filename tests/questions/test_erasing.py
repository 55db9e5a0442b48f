"""Erasing a question: one's own, for good, and cancelled first if it is pending."""

import asyncio

import httpx
import pytest
from sqlalchemy import text

from core.db import Database
from core.testing import Running
from tests.support.api import Account, Api, assert_problem
from tests.support.upstream import Received, Upstream, Wire


async def erase(api: Api, who: Account, question_id: int) -> httpx.Response:
    return await api.http.delete(f"/questions/{question_id}", headers=who.auth)


async def test_A04_a_question_that_was_erased_is_nowhere(
    api: Api, ada: Account, admin: Account, service: Running
) -> None:
    kept, gone = [(await api.ask(ada, content)).json() for content in ("A?", "B?")]
    answer = await erase(api, ada, gone["id"])
    assert (answer.status_code, answer.content) == (204, b"")
    assert await api.newest(ada) == [kept]
    for who in (ada, admin):
        read = await api.get(f"/questions/{gone['id']}", who)
        assert_problem(read, 404, "question_not_found")
    assert_problem(await erase(api, ada, gone["id"]), 404, "question_not_found")
    listed = (await api.get("/questions", admin, user_id=ada.id)).json()["items"]
    assert [question["id"] for question in listed] == [kept["id"]]
    exported = (await api.get("/users/me/export", ada)).json()
    assert exported["questions"] == [kept]
    async with service.service(Database).reading() as session:
        count = text("SELECT COUNT(*) FROM questions WHERE id = :id")
        assert await session.scalar(count, {"id": gone["id"]}) == 0


async def test_A04_a_question_of_somebody_else_s_is_not_there_to_be_erased(
    api: Api, ada: Account, admin: Account
) -> None:
    question = (await api.ask(ada, "Whose?")).json()
    for who in (await api.account(), admin):
        refused = [await erase(api, who, id) for id in (question["id"], 2**62)]
        assert_problem(refused[0], 404, "question_not_found")
        bodies = [
            answer.text.replace(answer.headers["x-request-id"], "")
            for answer in refused
        ]
        assert bodies[0] == bodies[1]
        names = [
            {name for name, _ in answer.headers.multi_items()} for answer in refused
        ]
        assert names[0] == names[1]
    assert await api.newest(ada) == [question]


@pytest.mark.parametrize("is_read", [False, True], ids=["plain", "stream"])
async def test_A13_a_pending_question_that_is_erased_is_answered_no_more(
    api: Api, ada: Account, upstream: Upstream, is_read: bool
) -> None:
    upstream_was_left = asyncio.Event()

    async def wait_for_the_end(wire: Wire, received: Received) -> None:
        await wire.closed_by_client()
        upstream_was_left.set()

    path = "/questions/stream" if is_read else "/questions"
    async with upstream.behaving(wait_for_the_end):
        body = {"content": "Never mind?"}
        asking = asyncio.create_task(api.http.post(path, json=body, headers=ada.auth))
        await upstream.asked()
        (pending,) = await api.newest(ada)
        assert (await erase(api, ada, pending["id"])).status_code == 204
        async with asyncio.timeout(1):
            await upstream_was_left.wait()
        assert_problem(await asking, 410, "question_withdrawn")
    assert await api.newest(ada) == []


async def test_of_many_who_erase_a_question_at_once_one_has_done_it(
    api: Api, ada: Account
) -> None:
    question = (await api.ask(ada, "Once?")).json()["id"]
    got = await asyncio.gather(*(erase(api, ada, question) for _ in range(10)))
    assert sorted(answer.status_code for answer in got) == [204, *[404] * 9]
