"""What the README shows is what happens: its commands are run as they stand."""

import asyncio
import json
import os
import re
import shlex
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.settings import load_settings
from core.testing import Running
from tests.conftest import Databases, served
from tests.support.api import Account, Api
from tests.support.config import write_config
from tests.support.markdown import ROOT, Block, blocks, section
from tests.support.upstream import (
    Received,
    Upstream,
    Wire,
    deltas,
    ending,
    streams,
)

ADDRESS = "http://127.0.0.1:8000"
ADMINS_PASSWORD = "seven silent typewriters"
EXAMPLES = sorted((ROOT / "config" / "examples").glob("*.toml"))
# Everything that differs from run to run, or by who answers.
CHANGING = re.compile(
    r"(_at|request_id|instance|access_token|refresh_token|answer|text|name|provider"
    r"|model|tokens|milliseconds|next_cursor|client|_in_seconds|remaining|day"
    r"|minute_questions)$"
)
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def readme(name: str = "README.md") -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@dataclass
class Step:
    """One command, and what the README promises."""

    command: str
    status: int | None
    example: Any = None


def steps(found: list[Block]) -> list[Step]:
    made: list[Step] = []
    for block in found:
        if block.language == "sh":
            status = re.search(r"Answer `(\d{3})`", block.after)
            made.append(Step(block.code, int(status[1]) if status else None))
        elif block.language == "json":
            made[-1].example = json.loads(block.code)
        elif block.language == "text":
            made[-1].example = events(block.code)
    return made


@dataclass
class Events:
    """Server-sent events, by name and data."""

    told: list[tuple[str, Any]]


def events(stream: str) -> Events:
    found = re.findall(r"^event: (.*)\ndata: (.*)$", stream, re.MULTILINE)
    return Events([(name, json.loads(data)) for name, data in found])


def assert_same_events(shown: Events, real: Events) -> None:
    """The same events; of a long one the README shows some members only."""
    assert [name for name, _ in real.told] == [name for name, _ in shown.told]
    for (name, told), (_, data) in zip(shown.told, real.told, strict=True):
        assert_like(told, {key: data[key] for key in told}, f"$.{name}")


async def run(commands: list[str], folder: Path, config: Path) -> list[tuple[str, str]]:
    """Run commands one after the other in one bash; return what each wrote."""
    home = folder / "home"
    home.mkdir()
    # The only thing added to the README's curl: it tells the status apart.
    (home / ".curlrc").write_text('silent\nwrite-out = "%{stderr}%{http_code}"\n')
    script = "".join(
        f"{{\n{command}\n}} >{folder}/{n}.out 2>{folder}/{n}.err\n"
        for n, command in enumerate(commands)
    )
    bash = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        script,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "VOPROS_CONFIG": str(config)},
        stdin=asyncio.subprocess.PIPE,
    )
    await bash.communicate(f"{ADMINS_PASSWORD}\n".encode())
    return [
        ((folder / f"{n}.out").read_text(), (folder / f"{n}.err").read_text())
        for n in range(len(commands))
    ]


def beginning(shown: dict[str, Any], real: dict[str, Any]) -> dict[str, Any]:
    """Of every list of an export as much as the README shows."""
    return {
        name: value[: len(shown[name])] if isinstance(value, list) else value
        for name, value in real.items()
    }


def assert_like(shown: Any, real: Any, where: str) -> None:
    """The same keys and types everywhere, and the same values but for a few."""
    assert type(real) is type(shown), f"{where}: {real!r}"
    if isinstance(shown, dict):
        assert real.keys() == shown.keys(), where
        for key in shown:
            assert_like(shown[key], real[key], f"{where}.{key}")
    elif isinstance(shown, list):
        assert len(real) == len(shown), where
        for index, (one, other) in enumerate(zip(shown, real, strict=True)):
            assert_like(one, other, f"{where}[{index}]")
    elif isinstance(shown, str) and UUID.fullmatch(shown):
        assert UUID.fullmatch(real), where
    elif not CHANGING.search(where):
        assert real == shown, where


@pytest.mark.slow
async def test_every_command_of_the_readme_answers_as_it_says(
    databases: Databases, database_kind: str, upstream: Upstream, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    limits = "per_minute = 20\nper_day = 500"
    config = write_config(
        tmp_path / "app.toml", url, upstream.base_url, questions=limits
    )
    told = steps(blocks(section(readme(), "Every endpoint with curl")))
    async with served(config) as (found, _):
        vopros = shlex.join([sys.executable, "-m", "core"])
        commands = [
            step.command.replace(ADDRESS, found.url).replace(".venv/bin/vopros", vopros)
            for step in told
        ]
        results = await run(commands, tmp_path, config)
    for step, (out, err) in zip(told, results, strict=True):
        if step.status is None:
            # It keeps a token, or runs on the server and tells what it did.
            event = "security.account_created" if "vopros" in step.command else "200"
            assert event in err, step.command + err
            continue
        assert err == str(step.status), step.command + out
        if isinstance(step.example, Events):
            assert_same_events(step.example, events(out))
        elif step.example is None:
            assert (step.status, out) == (204, ""), step.command
        elif "/export" in step.command:
            real = json.loads(out)
            assert_like(step.example, beginning(step.example, real), "$")
        else:
            assert_like(step.example, json.loads(out), "$")


@pytest.mark.slow
async def test_every_command_for_operators_works(
    tmp_path: Path, databases: Databases, upstream: Upstream
) -> None:
    async def list_models(wire: Wire, received: Received) -> None:
        await wire.respond({"data": [{"id": "fake"}]})

    url = await databases.migrated("sqlite")
    config = write_config(
        tmp_path / "app.toml", url, upstream.base_url, providers__echo='type = "echo"'
    )
    vopros = shlex.join([sys.executable, "-m", "core"])
    commands = [
        line.replace(".venv/bin/vopros", vopros)
        .replace("make run", f"{vopros} config check")
        .replace("config/app.schema.json", shlex.quote(f"{tmp_path}/schema.json"))
        for title in ("Switching the provider", "Configuration")
        for block in blocks(section(readme(), title))
        if block.language == "sh"
        for line in block.code.splitlines()
        # These are of other files: each is checked with its variables set.
        if "config/examples" not in line
    ]
    assert len(commands) == 8
    async with upstream.behaving(list_models):
        results = await run(["set -e", *commands, "echo all"], tmp_path, config)
    for command, (out, err) in zip(commands, results[1:], strict=False):
        assert err == "", command + err
        assert out or "schema.json" in command, command
    assert results[-1] == ("all\n", "")
    assert "yes" in results[1 + commands.index(f"{vopros} config check --live")][0]
    assert json.loads((tmp_path / "schema.json").read_text())["type"] == "object"


@pytest.mark.slow
async def test_every_command_for_accounts_works(
    tmp_path: Path, databases: Databases, database_kind: str
) -> None:
    config = write_config(
        tmp_path / "app.toml", await databases.migrated(database_kind)
    )
    (tmp_path / "password").write_text(f"{ADMINS_PASSWORD}\n")
    vopros = shlex.join([sys.executable, "-m", "core"])
    (block,) = blocks(section(readme(), "Accounts"))
    # Another administrator is there, or the last one would be shut out.
    lines = [".venv/bin/vopros accounts create-admin chief", *block.code.splitlines()]
    commands = [
        line.replace(".venv/bin/vopros", vopros).replace("NAME", "grace")
        + (f" <{shlex.quote(str(tmp_path))}/password" * ("-" in line.split()[2]))
        for line in lines
    ]
    results = await run(["set -e", *commands, "echo all"], tmp_path, config)
    assert results[-1] == ("all\n", "")
    said = [out.strip() for out, _ in results[1:-1]]
    assert said[1:6] == [
        "created administrator grace with id 2",
        "grace is now admin",
        "grace has a new password and no sessions",
        "grace is now inactive",
        "grace is now active",
    ]
    assert [line.split()[1] for line in said[6].splitlines()] == [
        *("name", "grace", "chief")
    ]


async def refuses(wire: Wire, received: Received) -> None:
    await wire.respond(status="400 Bad Request")


async def test_the_readers_python_reads_a_stream_and_knows_its_end(
    service: Running, api: Api, ada: Account, upstream: Upstream
) -> None:
    (code,) = (b.code for b in blocks(readme()) if b.language == "python")
    scope: dict[str, Any] = {}
    exec(code, scope)

    def read() -> str:
        return "".join(scope["ask"](service.url, ada.token, "Which city?"))

    async with upstream.behaving(streams(*deltas("Par", "is \u2028"), *ending())):
        assert await asyncio.to_thread(read) == "Paris \u2028"
    async with upstream.behaving(streams(*deltas("Par"), is_cut=True)):
        with pytest.raises(RuntimeError, match="answer broke off"):
            await asyncio.to_thread(read)
    async with upstream.behaving(refuses):
        with pytest.raises(RuntimeError, match="does not accept this question"):
            await asyncio.to_thread(read)


async def test_the_readme_shows_every_operation_that_there_is(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    async with served(write_config(tmp_path / "app.toml", url)) as (found, api):
        made = (await api.get("/openapi.json")).json()
        assert found.app is not None
    shown = set()
    for step in steps(blocks(section(readme(), "Every endpoint with curl"))):
        if step.status is not None:
            method = re.search(r"-X ([A-Z]+)", step.command)
            path = re.search(rf"{ADDRESS}([^\s?']*)", step.command)
            sends = " -d " in step.command
            assert path is not None
            word = method[1] if method else "POST" if sends else "GET"
            shown.add((word, re.sub(r"/(\d+|\$\w+)", "/{}", path[1])))
    assert shown == {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path))
        for path, item in made["paths"].items()
        for method in item
    }


def test_both_readmes_have_the_same_commands_examples_and_sections() -> None:
    english, russian = readme(), readme("README.ru.md")
    assert [(b.language, b.code) for b in blocks(russian)] == [
        (b.language, b.code) for b in blocks(english)
    ]
    for text in (r"^#+ ", r"^\d+\. ", r"^- ", r"^\|"):
        mark = re.compile(text, re.MULTILINE)
        assert len(mark.findall(russian)) == len(mark.findall(english)), text
    code = re.compile(r"`[^`\n]+`")
    english_words, russian_words = (
        sorted(set(code.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL))))
        for text in (english, russian)
    )
    assert russian_words == english_words
    statuses = re.compile(r"`(\d{3})`")
    assert statuses.findall(russian) == statuses.findall(english)


def test_files_and_make_targets_that_the_documents_name_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in ("README.md", "README.ru.md", "CONTRIBUTING.md"):
        text = readme(name)
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / target).exists(), f"{name}: {target}"
        for target in re.findall(r"\bmake ([a-z-]+)\b(?=[`\n])", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    named = set(re.findall(r"`([a-z-]+\.toml)`", readme()))
    assert named == {path.name for path in EXAMPLES}


async def check(config: Path, **more: str) -> tuple[int | None, str]:
    """`vopros config check` on a file, with nothing else in the environment."""
    checking = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "core", "--config", str(config), "config", "check"),
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **more},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await checking.communicate()
    return checking.returncode, said.decode()


def keys_for(file: Path) -> dict[str, str]:
    """The variables that a configuration file names."""
    names = re.findall(r"\$\{(\w+)\}", file.read_text(encoding="utf-8"))
    return dict.fromkeys(names, "not-a-real-key")


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
async def test_every_example_configuration_is_right_once_its_variables_are_set(
    example: Path, tmp_path: Path
) -> None:
    variables = keys_for(example)
    secret = {"VOPROS_AUTH__SECRET": "8d1fc1bb8e83443b85b48ddc985e3c24a02f"}
    if example.stem == "local-gguf":
        code, said = await check(example, **secret)
        assert code == 78
        assert "[providers.mine] model_file: there is no such file" in said
        (tmp_path / "model.gguf").touch()
        secret["VOPROS_PROVIDERS__MINE__MODEL_FILE"] = f"{tmp_path}/model.gguf"
    assert await check(example, **variables, **secret) == (
        0,
        f"config/examples/{example.name}: nothing wrong\n",
    )
    for missing in variables:
        code, said = await check(example, **secret)
        assert code == 78
        assert f"the variable {missing} is not set" in said


def test_the_configurations_in_the_readme_are_right(tmp_path: Path) -> None:
    found = [block.code for block in blocks(readme()) if block.language == "toml"]
    assert found
    for code in found:
        file = tmp_path / "app.toml"
        tables = tomllib.loads(code)
        for key in tables.get("auth", {}).get("signing_keys", ()):
            kept = tmp_path / Path(key["secret_file"]).name
            kept.write_text(os.urandom(32).hex())
            code = code.replace(key["secret_file"], str(kept))
        file.write_text(code)
        # What names no provider is tried with one.
        for provider in tables.get("providers", ["echo"]):
            switch = {"VOPROS_LLM__PROVIDER": provider}
            switch |= {"VOPROS_PROVIDERS__ECHO__TYPE": "echo"}
            load_settings(file, keys_for(file) | switch)
