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
from core.testing import running
from providers.local import LocalOptions, model_file
from tests.conftest import Databases, served
from tests.support.api import assert_problem
from tests.support.config import write_config
from tests.support.process import serving

# The one that the README and /docs propose.
QUESTION = "What is the capital of France?"
LOCAL: dict[str, Any] = {"providers__here": 'type = "local"\nmax_tokens = 40'}


def local_config(file: Path, url: str, **tables: str) -> Path:
    """A configuration in which `here` is the local model, chosen by name."""
    write_config(file, url, **(LOCAL | tables))
    text = file.read_text().replace('provider = "main"', 'provider = "here"')
    file.write_text(text)
    return file


async def test_the_real_model_answers_and_is_stored(
    tmp_path: Path, databases: Databases, database_kind: str
) -> None:
    file = local_config(tmp_path / "app.toml", await databases.migrated(database_kind))
    async with served(file) as (_, api):
        note = (await api.get("/health/ready")).json()["notes"]["provider"]
        assert "135M" in note
        assert note in (await api.get("/openapi.json")).json()["info"]["description"]
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


async def test_the_child_ends_even_when_the_server_is_killed(
    tmp_path: Path, databases: Databases
) -> None:
    file = local_config(tmp_path / "app.toml", await databases.migrated("sqlite"))
    with serving("--config", file) as server:
        (child,) = local_servers(server.process.pid)
        server.end(signal.SIGKILL)
    await asyncio.to_thread(psutil.wait_procs, [child], timeout=5)
    assert not child.is_running()


async def test_a_child_that_dies_is_a_failure_of_the_provider(
    tmp_path: Path, databases: Databases
) -> None:
    file = local_config(tmp_path / "app.toml", await databases.migrated("sqlite"))
    async with served(file) as (_, api):
        ada = await api.account()
        (child,) = local_servers(os.getpid())
        child.kill()
        assert_problem(await api.ask(ada, QUESTION), 502, "provider_unreachable")
        assert (await api.newest(ada))[0]["status"] == "failed"


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


async def test_a_missing_model_file_refuses_the_start_by_name(
    tmp_path: Path, databases: Databases
) -> None:
    options = 'type = "local"\nmodel_file = "nowhere.gguf"'
    url = await databases.migrated("sqlite")
    file = local_config(tmp_path / "app.toml", url, providers__here=options)
    with pytest.raises(StartRefused, match="'here': model_file does not exist"):
        async with running(file):
            pass


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
        async with served(file) as (_, api):
            note = (await api.get("/health/ready")).json()["notes"]["provider"]
            assert note.startswith("echo")
            assert told in note
            answer = await api.ask(await api.account(), "Anyone?")
            assert "demonstration" in answer.json()["answer"]
            assert "llm.provider" in answer.json()["answer"]


def local_servers(parent: int) -> list[psutil.Process]:
    """The child processes of a server that run the local model."""
    children = psutil.Process(parent).children(recursive=True)
    return [
        child
        for child in children
        if any("local_server" in part for part in child.cmdline())
    ]
