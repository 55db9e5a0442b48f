"""The local model: a real one, in a child process that never outlives its parent."""

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.errors import StartRefused
from core.health import Health
from core.module import ROOT
from core.testing import running
from providers.backend import Timing
from providers.local import MODEL_NAME, LocalOptions, model_file, open_local
from providers.public import ChatRequest, OffersModels, ProviderUnreachable
from tests.conftest import Databases, served
from tests.support.config import write_config
from tests.support.process import assert_refused, serving, vopros

# The one that the README and /docs propose.
QUESTION = "What is the capital of France?"
LOCAL: dict[str, Any] = {"providers__here": 'type = "local"\nmax_tokens = 40'}


def local_config(file: Path, url: str, **tables: str) -> Path:
    """A configuration in which `here` is the local model, chosen by name."""
    write_config(file, url, **(LOCAL | tables))
    text = file.read_text().replace('provider = "main"', 'provider = "here"')
    file.write_text(text)
    return file


@pytest.mark.slow
async def test_the_real_model_answers_and_is_stored(
    tmp_path: Path, databases: Databases, database_kind: str
) -> None:
    file = local_config(tmp_path / "app.toml", await databases.migrated(database_kind))
    async with served(file) as (found, api):
        note = found.service(Health).notes["provider"]
        assert "135M" in note
        assert note not in (await api.get("/openapi.json")).text
        ada = await api.account()
        answer = await api.ask(ada, QUESTION)
        assert answer.status_code == 201
        question = answer.json()
        assert "Paris" in question["answer"]
        assert "135M" in question["model"]
        assert "demonstration" in question["model"]
        assert question["provider"] == "here"
        assert question["usage"]["prompt_tokens"] > 10
        assert 0 < question["usage"]["completion_tokens"] <= 40
        assert await api.newest(ada) == [question]


async def test_the_child_needs_its_random_key_and_ends_with_the_server(
    tmp_path: Path, databases: Databases
) -> None:
    file = local_config(tmp_path / "app.toml", await databases.migrated("sqlite"))
    async with served(file) as (_, api):
        (child,) = local_servers(os.getpid())
        (listening,) = child.net_connections(kind="tcp4")
        assert listening.laddr.ip == "127.0.0.1"
        stranger = await api.http.post(
            f"http://127.0.0.1:{listening.laddr.port}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "Hello"}]},
        )
        assert stranger.status_code == 401
    assert not child.is_running()


@pytest.mark.slow
async def test_the_child_ends_even_when_the_server_is_killed(
    tmp_path: Path, databases: Databases
) -> None:
    file = local_config(tmp_path / "app.toml", await databases.migrated("sqlite"))
    with serving("--config", file) as server:
        (child,) = local_servers(server.process.pid)
        server.end(signal.SIGKILL)
    await asyncio.to_thread(psutil.wait_procs, [child], timeout=60)
    assert not child.is_running()


@pytest.mark.slow
async def test_a_streamed_answer_comes_in_several_pieces(
    tmp_path: Path, databases: Databases
) -> None:
    file = local_config(tmp_path / "app.toml", await databases.migrated("sqlite"))
    async with served(file) as (_, api):
        ada = await api.account()
        async with api.reading(ada, QUESTION) as events:
            told = await events.rest()
        names = [name for name, _ in told]
        assert names == ["meta", *["delta"] * (len(told) - 2), "done"]
        pieces = [data["text"] for name, data in told if name == "delta"]
        assert len(pieces) > 3
        question = told[-1][1]
        assert "".join(pieces) == question["answer"]
        assert "Paris" in question["answer"]
        assert question["usage"]["completion_tokens"] <= 40
        assert await api.newest(ada) == [question]


@pytest.mark.slow
async def test_a_child_that_dies_fails_what_it_was_at_and_another_answers(
    tmp_path: Path, databases: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    # An answer that would take far longer than the test.
    long = {"providers__here": 'type = "local"\nmax_tokens = 2000'}
    url = await databases.migrated("sqlite")
    file = local_config(tmp_path / "app.toml", url, **long)
    async with served(file) as (_, api):
        ada = await api.account()
        (child,) = local_servers(os.getpid())
        async with api.reading(ada, "Tell me a long story.") as events:
            read = ""
            async for name, data in events:
                if name == "delta":
                    read += data["text"]
                    child.kill()
        assert (name, data["code"]) == ("error", "provider_stream_broken")
        (failed,) = await api.newest(ada)
        assert (failed["status"], failed["answer"]) == ("failed", read)
        assert [attempt["outcome"] for attempt in failed["attempts"]] == [
            "provider_stream_broken"
        ]
        answer = await api.ask(ada, "Say yes.")
        assert answer.status_code == 201, answer.text
        (successor,) = local_servers(os.getpid())
        assert successor.pid != child.pid
    (restart,) = [r for r in caplog.records if r.msg == "provider.restarting"]
    told = vars(restart)
    assert (told["provider"], told["pause_seconds"]) == ("here", 0)
    assert told["reason"] == "it ended with code -9"


async def test_a_child_that_dies_at_every_start_is_not_restarted_in_a_busy_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    is_enough = asyncio.Event()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 9:
            is_enough.set()
            await asyncio.Event().wait()

    timing = Timing(clock=lambda: 0.0, sleep=sleep)
    options = LocalOptions(type="local")
    async with open_local("here", options, timing) as local:
        (child,) = local_servers(os.getpid())
        with broken_library(tmp_path, BROKEN["libgomp"][0], monkeypatch):
            child.kill()
            await is_enough.wait()
        assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60]
        # Nobody waits for the end of a pause: another provider may be there to ask.
        with pytest.raises(ProviderUnreachable):
            await anext(local.stream(ChatRequest(QUESTION)))
    assert local_servers(os.getpid()) == []


async def test_it_tells_its_model(tmp_path: Path) -> None:
    async with open_local("here", LocalOptions(type="local")) as local:
        assert isinstance(local, OffersModels)
        assert await local.models() == (MODEL_NAME,)


@pytest.mark.slow
@pytest.mark.parametrize("after_seconds", [0.0, 0.05, 0.2])
async def test_no_child_is_left_by_a_server_that_ends_while_it_starts_one(
    after_seconds: float, tmp_path: Path, databases: Databases
) -> None:
    own = tmp_path / "my-own.gguf"
    own.symlink_to(model_file(LocalOptions(type="local")))
    table = f'type = "local"\nmodel_file = "{own}"'
    url = await databases.migrated("sqlite")
    file = local_config(tmp_path / "app.toml", url, providers__here=table)
    with serving("--config", file) as server:
        (child,) = local_servers(server.process.pid)
        child.kill()
        while local_servers(server.process.pid) in ([], [child]):
            await asyncio.sleep(0.002)
        await asyncio.sleep(after_seconds)
        assert await asyncio.to_thread(server.end) == 0, server.log
    assert [p for p in local_servers() if str(own) in p.cmdline()] == []
    assert "Traceback" not in server.log


@pytest.mark.slow
async def test_any_other_model_file_can_be_loaded(
    tmp_path: Path, databases: Databases
) -> None:
    own = tmp_path / "my-own.gguf"
    own.symlink_to(model_file(LocalOptions(type="local")))
    options = f'type = "local"\nmax_tokens = 8\nmodel_file = "{own}"'
    file = local_config(
        tmp_path / "app.toml",
        await databases.migrated("sqlite"),
        providers__here=options,
    )
    async with served(file) as (_, api):
        answer = await api.ask(await api.account(), QUESTION)
        assert answer.json()["model"] == "my-own"


@pytest.mark.slow
@pytest.mark.parametrize("chosen", ["here", "auto"])
async def test_a_missing_model_file_is_told_with_its_key(
    chosen: str, tmp_path: Path
) -> None:
    table = 'type = "local"\nmodel_file = "nowhere.gguf"'
    url = f"sqlite+aiosqlite:///{tmp_path}/vopros.db"
    file = write_config(tmp_path / "app.toml", url, providers__here=table)
    env = {"VOPROS_LLM__PROVIDER": chosen, "VOPROS_LLM__AUTO": "here"}
    done = vopros("--config", file, "config", "check", env=env)
    told = "[providers.here] model_file: there is no such file"
    assert_refused(done, told, code=78)


async def test_a_relative_model_file_begins_at_the_root_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    beside_it = Path("pyproject.toml")
    options = LocalOptions(type="local", model_file=beside_it)
    assert options.model_file == ROOT / beside_it


BROKEN = {
    "libgomp": (
        "raise ImportError('libgomp.so.1: cannot open shared object file')",
        "libgomp.so.1",
    ),
    "processor": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGILL)",
        "this processor cannot run the local model",
    ),
}


@contextmanager
def broken_library(
    folder: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Put a library that breaks so in the way of the child's."""
    (folder / "xllamacpp.py").write_text(source)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield


@pytest.mark.parametrize("cause", BROKEN)
async def test_a_machine_that_cannot_run_it_is_told_in_one_line(
    cause: str, tmp_path: Path, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, told = BROKEN[cause]
    file = local_config(tmp_path / "app.toml", await databases.migrated("sqlite"))
    with broken_library(tmp_path, source, monkeypatch):
        with pytest.raises(StartRefused, match=re.escape(told)) as refused:
            async with running(file):
                pass
        assert "\n" not in str(refused.value)


async def test_auto_moves_on_to_echo_and_says_why(
    tmp_path: Path, databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, told = BROKEN["libgomp"]
    url = await databases.migrated("sqlite")
    file = tmp_path / "app.toml"
    write_config(file, url, providers__echo='type = "echo"', **LOCAL)
    text = file.read_text().replace(
        'provider = "main"', 'provider = "auto"\nauto = ["here", "echo"]'
    )
    file.write_text(text)
    with broken_library(tmp_path, source, monkeypatch):
        async with served(file) as (found, api):
            note = found.service(Health).notes["provider"]
            assert note.startswith("echo")
            assert told in note
            answer = await api.ask(await api.account(), "Anyone?")
            assert "demonstration" in answer.json()["answer"]
            assert "llm.provider" in answer.json()["answer"]


def local_servers(parent: int | None = None) -> list[psutil.Process]:
    """The processes that run the local model: all there are, or a server's."""
    found = (
        psutil.process_iter()
        if parent is None
        else psutil.Process(parent).children(recursive=True)
    )
    return [process for process in found if _runs_local_server(process)]


def _runs_local_server(process: psutil.Process) -> bool:
    try:
        return any("local_server" in part for part in process.cmdline())
    except psutil.Error:
        return False  # it has just ended
