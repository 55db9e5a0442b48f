"""What an operator finds in the log of a question that went wrong."""

import asyncio
import json
from pathlib import Path

from tests.conftest import Databases
from tests.support.api import Api, assert_problem
from tests.support.config import write_config
from tests.support.process import serving
from tests.support.upstream import Received, Upstream, Wire


async def test_the_request_id_finds_what_the_model_answered(
    tmp_path: Path, databases: Databases, upstream: Upstream
) -> None:
    async def unknown_model(wire: Wire, received: Received) -> None:
        await wire.respond("no such model", status="404 Not Found")

    url = await databases.migrated("sqlite")
    log = 'format = "json"'
    file = write_config(tmp_path / "app.toml", url, upstream.base_url, log=log)
    with serving("--config", file) as server:
        api = Api(server.url)
        async with upstream.behaving(unknown_model):
            answer = await api.ask(await api.account(), "Why?")
        problem = assert_problem(answer, 502, "provider_misconfigured")
        await api.close()
        assert await asyncio.to_thread(server.end) == 0
    lines = [json.loads(line) for line in server.log.splitlines()]
    about = [line for line in lines if line.get("request_id") == problem["request_id"]]
    events = {line["event"]: line for line in about}
    assert events.keys() == {"provider.failed", "question.settled", "request"}
    assert events["provider.failed"]["upstream_status"] == 404
    assert events["provider.failed"]["provider"] == "main"
    assert events["question.settled"]["question_id"] == problem["question_id"]
    assert "no such model" not in server.log
