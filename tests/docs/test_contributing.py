"""What CONTRIBUTING.md tells to do is done here, with its very text."""

import asyncio
import os
import re
import shutil
import sys
import tomllib
from itertools import chain
from pathlib import Path

import httpx
import pytest

from tests.architecture.contracts import check as check_borders
from tests.conftest import Databases, served
from tests.support.api import Api, assert_problem
from tests.support.config import SECRET, write_config
from tests.support.markdown import ROOT, blocks, section

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def files_of(title: str) -> dict[str, str]:
    """The Python files a section shows, by the path in their first line."""
    found = {}
    for block in blocks(section(TEXT, title)):
        if block.language == "python":
            first, _, code = block.code.partition("\n")
            found[first.removeprefix("# ")] = code
    return found


async def run(*command: str, cwd: Path, **environ: str) -> str:
    """Run a program to its end; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env=os.environ | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


async def assert_tidy(folder: Path, root: Path) -> None:
    """What the document shows is written as everything else is."""
    tools, config = Path(sys.executable).parent, str(ROOT / "pyproject.toml")
    for check in (("black", "--check", "--quiet"), ("ruff", "check", "--no-cache")):
        program = str(tools / check[0])
        await run(program, *check[1:], "--config", config, str(folder), cwd=root)


@pytest.mark.slow
async def test_the_provider_of_the_document_answers_through_the_api(
    databases: Databases,
    database_kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = files_of("Adding a provider")
    assert len(files["vopros_faq.py"].splitlines()) < 40
    project, configuration = (
        block.code
        for block in blocks(section(TEXT, "Adding a provider"))
        if block.language == "toml"
    )
    (source := tmp_path / "source").mkdir()
    for name in ("vopros_faq.py", "test_vopros_faq.py"):
        (source / name).write_text(files[name])
    (source / "pyproject.toml").write_text(project)
    packages = tmp_path / "packages"
    await assert_tidy(source, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install")
    alone = ("--no-deps", "--no-build-isolation", "--no-index")
    await run(*pip, *alone, "--target", str(packages), str(source), cwd=tmp_path)
    suite = (sys.executable, "-m", "pytest", "-q", "test_vopros_faq.py")
    said = await run(*suite, cwd=source, PYTHONPATH=str(packages))
    assert re.search(r"^[1-9]\d* passed in", said, re.MULTILINE), said
    monkeypatch.syspath_prepend(packages)

    file = tmp_path / "app.toml"
    url = await databases.migrated(database_kind)
    file.write_text(
        f'{configuration}\n[database]\nurl = "{url}"\n[auth]\nsecret = "{SECRET}"\n'
    )
    async with served(file) as (_, api):
        ada = await api.account()
        asked = await api.ask(ada, "When do you open?")
        assert asked.status_code == 201
        answer = asked.json()
        assert (answer["answer"], answer["provider"]) == ("At nine.", "faq")
        assert answer["model"] == "faq-1"
        assert_problem(await api.ask(ada, "Why?"), 422, "provider_rejected")


def test_the_suite_that_the_document_shows_is_one_of_ours() -> None:
    name = "tests/providers/test_suite.py"
    shown = files_of("Adding a provider")[name]
    assert shown in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.slow
async def test_the_module_of_the_document_serves_and_crosses_no_border(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    house = tmp_path / "house"
    for folder in ("core", "modules", "providers", "migrations", "config"):
        shutil.copytree(
            ROOT / folder, house / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name, code in files_of("Adding a module").items():
        (house / name).parent.mkdir(exist_ok=True)
        (house / name).write_text(code)
    await assert_tidy(house / "modules" / "notes", house)
    assert check_borders(house) == 0

    url = await databases.migrated(database_kind)
    config = write_config(tmp_path / "app.toml", url)
    vopros = (sys.executable, "-m", "core", "--config", str(config))
    await run(*vopros, "revision", "notes", "Create notes", cwd=house)
    assert "notes" in await run(*vopros, "migrate", cwd=house)
    server = await asyncio.create_subprocess_exec(
        *(*vopros, "serve", "--port", "0"), cwd=house, stderr=asyncio.subprocess.PIPE
    )
    try:
        api = Api(await address(server))
        try:
            ada, eve = await api.account(), await api.account()
            kept = await api.http.post(
                "/notes", json={"text": "Buy milk."}, headers=ada.auth
            )
            assert kept.status_code == 201
            assert (await api.get("/notes", ada)).json() == [kept.json()]
            assert (await api.get("/notes", eve)).json() == []
            assert_problem(await api.get("/notes"), 401, "token_missing")
            taken_along = (await api.get("/users/me/export", ada)).json()
            assert taken_along["notes"] == [kept.json()]
            assert taken_along["complete"] is True
            made = (await api.get("/openapi.json")).json()
            tags = {tag["name"]: tag["description"] for tag in made["tags"]}
            assert tags["notes"] == "Notes to oneself."
            assert await leaves(api, ada.auth) == 204
        finally:
            await api.close()
    finally:
        server.terminate()
        await server.communicate()


async def address(server: asyncio.subprocess.Process) -> str:
    """Where a started server says that it listens."""
    assert server.stderr is not None
    async with asyncio.timeout(60):
        async for line in server.stderr:
            if found := re.search(r"Swagger: (http://\S+)/docs", line.decode()):
                return found[1]
    raise AssertionError("the server ended before it listened")


async def leaves(api: Api, headers: dict[str, str]) -> int:
    """Delete an account that has notes."""
    gone: httpx.Response = await api.http.delete("/users/me", headers=headers)
    return gone.status_code


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    told = section(TEXT, "Why each dependency is there")
    groups = project["dependency-groups"].values()
    for requirement in chain(project["project"]["dependencies"], *groups):
        name = re.match(r"[A-Za-z0-9-]+", requirement)
        assert name is not None
        assert f"`{name[0]}`" in told, name[0]


def test_every_folder_of_the_house_is_described() -> None:
    told = section(TEXT, "The house")
    for folder in ("core", "providers", "modules", "migrations", "config", "tests"):
        assert f"| `{folder}/` |" in told
