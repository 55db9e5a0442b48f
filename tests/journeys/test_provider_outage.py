"""Two providers, and the first dies mid-day: processes of their own, all of them."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Databases
from tests.support.api import PASSWORD, Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.process import serving, vopros
from tests.support.upstream import KEY
from tests.support.upstream_process import model_process

TABLE = 'type = "openai"\nbase_url = "{url}"\nmodel = "fake"\napi_key = "{key}"'


@pytest.mark.slow
async def test_the_first_of_two_providers_dies_and_comes_back(
    tmp_path: Path, databases: Databases, database_kind: str
) -> None:
    with model_process("first") as first, model_process("second") as second:
        tables = {
            f"providers__{name}": TABLE.format(url=model.base_url, key=KEY)
            for name, model in (("first", first), ("second", second))
        }
        llm = 'fallback = ["second"]'
        file = write_config(
            tmp_path / "app.toml",
            await databases.migrated(database_kind),
            llm=llm,
            **tables,
        )
        environ = {"VOPROS_LLM__PROVIDER": "first"}
        with serving("--config", file, env=environ) as server:
            api = Api(server.url)
            ada = await api.account()
            admin = await administrator(file, api)

            # The morning: the first one answers.
            assert await answered_by(api, ada) == ("first", ["first answered"])
            assert await states(api, admin) == {"first": "closed", "second": "closed"}

            # It dies while somebody reads: that answer is lost, and says so.
            async with api.reading(ada, "What is going on?") as reading:
                _, half = await reading.next(), await reading.next()
                first.die()
                (error,) = await reading.rest()
            assert half.data == {"text": "first says half "}
            assert error.data["code"] == "provider_stream_broken"
            kept = (await api.newest(ada))[0]
            assert (kept["status"], kept["answer"]) == ("failed", half.data["text"])

            # Everybody after that is answered by the second one, without a single
            # failure; before long the dead one is not even asked.
            for _ in range(15):
                who, attempts = await answered_by(api, ada)
                assert (who, attempts[-1]) == ("second", "second answered")
            assert attempts == ["first provider_unavailable", "second answered"]
            assert (await states(api, admin))["first"] == "open"
            assert (await api.get("/health/ready")).status_code == 200

            # Both are dead: nobody waits to be told.
            second.die()
            while (answer := await api.ask(ada, "Anybody?")).status_code != 503:
                assert_problem(answer, 502, "provider_unreachable")
            started = time.monotonic()
            answer = await api.ask(ada, "Anybody?")
            assert time.monotonic() - started < 10
            assert_problem(answer, 503, "provider_unavailable")
            assert 1 <= int(answer.headers["retry-after"]) <= 12

            # The evening: the first is back, and takes its place by itself.
            first.start()
            async with asyncio.timeout(60):
                while (await api.ask(ada, "Now?")).status_code != 201:
                    await asyncio.sleep(0.2)
            assert (await answered_by(api, ada))[0] == "first"
            assert (await states(api, admin))["first"] == "closed"
            await api.close()
        assert KEY not in server.log


async def answered_by(api: Api, who: Account) -> tuple[str, list[str]]:
    answer = await api.ask(who, "Are you there?")
    assert answer.status_code == 201, answer.text
    question: dict[str, Any] = answer.json()
    assert question["answer"] == f"{question['provider']} says yes"
    attempts = [f"{a['provider']} {a['outcome']}" for a in question["attempts"]]
    return question["provider"], attempts


async def states(api: Api, admin: Account) -> dict[str, str]:
    listed = (await api.get("/providers", admin)).json()
    return {provider["name"]: provider["state"] for provider in listed}


async def administrator(file: Path, api: Api) -> Account:
    arguments = ("--config", file, "accounts", "create-admin", "chief")
    done = await asyncio.to_thread(vopros, *arguments, stdin=f"{PASSWORD}\n")
    assert done.returncode == 0, done.stderr
    return await api.signed_in(0, "chief")
