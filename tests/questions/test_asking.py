"""Asking: the row before the call, no connection held, one end for every question."""

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from core.db import Database
from core.testing import Running
from tests.conftest import assert_no_secret_in, served
from tests.support.api import Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.upstream import (
    STREAM_HEAD,
    Received,
    Upstream,
    Wire,
    answers,
    deltas,
    ending,
    framed,
)


@pytest.fixture(scope="module")
async def service(
    tmp_path_factory: pytest.TempPathFactory, database_url: str, upstream: Upstream
) -> AsyncIterator[Running]:
    """A service with a single connection to its database."""
    file = write_config(
        tmp_path_factory.mktemp("service") / "app.toml",
        database_url,
        upstream.base_url,
        database="pool_size = 1",
    )
    async with served(file) as (found, _):
        yield found
        await assert_no_secret_in(found)


async def refuses(wire: Wire, received: Received) -> None:
    await wire.respond(status="500 Internal Server Error")


@pytest.mark.parametrize("path", ["/questions", "/questions/stream"])
async def test_A12_no_connection_is_held_while_the_model_thinks(
    api: Api, ada: Account, upstream: Upstream, path: str
) -> None:
    release = asyncio.Event()

    async def think(wire: Wire, received: Received) -> None:
        if path == "/questions":
            await release.wait()
            await answers(wire, received)
            return
        await wire.send(STREAM_HEAD, *map(framed, deltas("Half ")))
        await release.wait()
        await wire.send(*map(framed, (*deltas("an answer"), *ending())), "0\r\n\r\n")

    def ask(number: int) -> Coroutine[Any, Any, httpx.Response]:
        body = {"content": f"Number {number}?"}
        return api.http.post(path, json=body, headers=ada.auth)

    async with upstream.behaving(think), asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask(n)) for n in range(20)]
        await upstream.asked(20)
        async with asyncio.timeout(1):
            assert (await api.get("/users/me", ada)).status_code == 200
            assert [q["status"] for q in await api.newest(ada)] == ["pending"] * 3
        assert not any(task.done() for task in asking)
        release.set()
    status = 201 if path == "/questions" else 200
    assert [task.result().status_code for task in asking] == [status] * 20
    assert [q["status"] for q in await api.newest(ada)] == ["answered"] * 3


async def test_a_question_is_pending_and_then_answered(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    async with upstream.stalled() as release:
        asking = asyncio.create_task(api.ask(ada, "Still there?"))
        await upstream.asked()
        (pending,) = await api.newest(ada)
        assert (pending["status"], pending["content"]) == ("pending", "Still there?")
        unset = ("answer", "provider", "model", "usage", "error_code", "answered_at")
        assert {pending[key] for key in unset} == {None}
        release.set()
        answered = (await asking).json()
    assert answered["id"] == pending["id"]
    assert await api.newest(ada) == [answered]


async def test_F41_the_last_three_are_ones_own_in_any_state(
    api: Api, ada: Account, upstream: Upstream
) -> None:
    assert await api.newest(ada) == []
    eve = await api.account()
    assert (await api.ask(ada, "First?")).status_code == 201
    assert (await api.ask(eve, "Of somebody else?")).status_code == 201
    assert [q["content"] for q in await api.newest(ada)] == ["First?"]
    assert (await api.ask(ada, "Second?")).status_code == 201
    async with upstream.behaving(refuses):
        assert_problem(await api.ask(ada, "Third?"), 502, "provider_failed")
    async with upstream.stalled():
        asking = asyncio.create_task(api.ask(ada, "Fourth?"))
        await upstream.asked()
        seen = [(q["content"], q["status"]) for q in await api.newest(ada)]
    await asking
    assert seen == [
        ("Fourth?", "pending"),
        ("Third?", "failed"),
        ("Second?", "answered"),
    ]
    assert [q["content"] for q in await api.newest(eve)] == ["Of somebody else?"]


async def test_F41_questions_of_the_same_moment_keep_their_order(
    api: Api, ada: Account, service: Running
) -> None:
    for n in range(4):
        await api.ask(ada, f"Number {n}?")
    async with service.service(Database).transaction() as session:
        await session.execute(
            text(
                "UPDATE questions SET asked_at = (SELECT MIN(asked_at) FROM questions)"
                " WHERE user_id = :user_id"
            ),
            {"user_id": ada.id},
        )
    newest = await api.newest(ada)
    assert len({question["asked_at"] for question in newest}) == 1
    assert [q["content"] for q in newest] == ["Number 3?", "Number 2?", "Number 1?"]


async def test_how_many_last_questions_are_shown_is_configurable(
    tmp_path: Path, databases: Any, database_kind: str, upstream: Upstream
) -> None:
    url = await databases.migrated(database_kind)
    file = write_config(
        tmp_path / "app.toml", url, upstream.base_url, questions="history_size = 2"
    )
    async with served(file) as (_, api):
        ada = await api.account()
        for n in range(3):
            await api.ask(ada, f"Number {n}?")
        assert [q["content"] for q in await api.newest(ada)] == [
            "Number 2?",
            "Number 1?",
        ]


@pytest.mark.slow
async def test_fifty_askers_at_once_each_get_their_own_answer(
    api: Api, upstream: Upstream
) -> None:
    async def answer_in_any_order(wire: Wire, received: Received) -> None:
        await asyncio.sleep(random.uniform(0, 0.1))
        await answers(wire, received)

    people = [await api.account() for _ in range(50)]
    async with upstream.behaving(answer_in_any_order):
        got = await asyncio.gather(
            *(api.ask(who, f"What does {who.username} want?") for who in people)
        )
    for who, answer in zip(people, got, strict=True):
        question = answer.json()
        assert (answer.status_code, question["user_id"]) == (201, who.id)
        assert question["answer"] == f"Answer to: What does {who.username} want?"
        assert await api.newest(who) == [question]


@pytest.mark.slow
async def test_F35_who_leaves_while_many_ask_harms_only_their_own_question(
    api: Api, upstream: Upstream
) -> None:
    """Those who ask at the same moment share a statement, and nothing else."""
    people = [await api.account() for _ in range(24)]
    leaving = people[::2]
    asking = [api.ask(who, f"For {who.username}?") for who in people]
    deleting = [api.http.delete("/users/me", headers=who.auth) for who in leaving]
    got = await asyncio.gather(*asking, *deleting)
    assert {answer.status_code for answer in got[24:]} == {204}
    for who, answer in zip(people, got, strict=False):
        if who in leaving:
            assert answer.status_code in (201, 401, 410), answer.text
        else:
            assert answer.status_code == 201, answer.text
            assert answer.json()["answer"] == f"Answer to: For {who.username}?"
            assert await api.newest(who) == [answer.json()]


async def test_F35_a_question_waits_for_its_askers_deletion_and_then_is_refused(
    api: Api, ada: Account, service: Running
) -> None:
    eve = await api.account()
    own = Database(service.service(Database).settings)
    async with own.transaction() as session:
        gone = text("DELETE FROM users WHERE id = :id")
        await session.execute(gone, {"id": ada.id})
        asking = [asyncio.create_task(api.ask(who, "Now?")) for who in (ada, eve)]
        # Both are let in, and their statement waits for this transaction.
        done, _ = await asyncio.wait(asking, timeout=0.5)
        assert not done
    await own.close()
    refused, answer = await asyncio.gather(*asking)
    assert_problem(refused, 401, "invalid_token")
    assert answer.status_code == 201, answer.text
