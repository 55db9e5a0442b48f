"""A module that cannot be loaded or opened: one line that names who brings it."""

from pathlib import Path

import pytest

from tests.support.config import write_config
from tests.support.notes import install_notes
from tests.support.process import assert_refused, vopros

CANARY = "canary-broken-5d20c7"
BY = "module 'notes' of notes-plugin 1.2"
MODULE = """\
from contextlib import asynccontextmanager
from core.module import Module

@asynccontextmanager
async def lifespan(context):
    {body}
    yield

MODULE = Module(name="notes", {parts})
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder of a stranger's module that the configuration enables."""
    return install_notes(tmp_path / "site")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    names = 'enabled = ["users", "auth", "questions", "notes"]'
    url = f"sqlite+aiosqlite:///{tmp_path}/vopros.db"
    return write_config(tmp_path / "app.toml", url, modules=names)


def assert_told(file: Path, command: str, line: str, code: int) -> None:
    env = {"PYTHONPATH": str(file.parent / "site"), "VOPROS_LOG__LEVEL": "warning"}
    refused = vopros("--config", file, *command.split(), env=env)
    assert CANARY not in refused.stdout + refused.stderr
    assert refused.stderr == f"vopros: {line}\n"
    assert refused.returncode == code


IMPORTS = {
    "missing": (
        "import nowhere",
        "ModuleNotFoundError: No module named 'nowhere' (notes_plugin/module.py:1)",
    ),
    "moved": (
        "from core.module import Gone",
        "ImportError: cannot import name 'Gone' from 'core.module' ",
    ),
    "wrong_syntax": ("def :", "SyntaxError: invalid syntax (module.py, line 1)"),
    "raises": (
        f"\nraise RuntimeError({CANARY!r})",
        "RuntimeError (notes_plugin/module.py:2)",
    ),
    "ends": ("raise SystemExit(0)", "SystemExit (notes_plugin/module.py:1)"),
    "empty": (
        "",
        "AttributeError: module 'notes_plugin.module' has no attribute 'MODULE'",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IMPORTS)
def test_a_module_that_cannot_be_imported_is_one_line(
    file: Path, package: Path, name: str
) -> None:
    code, told = IMPORTS[name]
    (package / "module.py").write_text(code)
    env = {"PYTHONPATH": str(package.parent)}
    for command in (["serve"], ["config", "check"]):
        refused = vopros("--config", file, *command, env=env)
        assert CANARY not in refused.stderr
        assert_refused(refused, f"{BY} cannot be loaded: {told}", code=78)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "command"),
    [("router", "serve --port 0"), ("models", "revision notes Something")],
)
def test_a_part_of_a_module_that_cannot_be_imported_is_one_line(
    file: Path, package: Path, part: str, command: str
) -> None:
    parts = f'{part}="notes_plugin.{part}"'
    (package / "module.py").write_text(MODULE.format(body="", parts=parts))
    (package / f"{part}.py").write_text(f"\n\nraise ValueError({CANARY!r})")
    place = f"(notes_plugin/{part}.py:3)"
    told = f"{BY}: notes_plugin.{part} cannot be loaded: ValueError {place}"
    assert_told(file, command, told, code=1)


@pytest.mark.slow
def test_a_router_module_without_a_router_is_one_line(
    file: Path, package: Path
) -> None:
    parts = 'router="notes_plugin.router"'
    (package / "module.py").write_text(MODULE.format(body="", parts=parts))
    (package / "router.py").write_text("")
    told = "AttributeError: module 'notes_plugin.router' has no attribute 'router'"
    line = f"{BY}: notes_plugin.router cannot be loaded: {told}"
    assert_told(file, "serve --port 0", line, code=1)


@pytest.mark.slow
@pytest.mark.parametrize("raised", ["RuntimeError", "SystemExit", "OSError"])
def test_a_module_that_cannot_be_opened_is_one_line(
    file: Path, package: Path, raised: str
) -> None:
    body = f"raise {raised}({CANARY!r})"
    source = MODULE.format(body=body, parts="lifespan=lifespan")
    (package / "module.py").write_text(source)
    told = f"{BY} cannot be opened: {raised} (notes_plugin/module.py:6)"
    assert_told(file, "serve --port 0", told, code=1)


@pytest.mark.slow
def test_a_module_may_refuse_the_start_in_its_own_words(
    file: Path, package: Path
) -> None:
    body = "from core.errors import StartRefused; raise StartRefused('no ink left')"
    source = MODULE.format(body=body, parts="lifespan=lifespan")
    (package / "module.py").write_text(source)
    assert_told(file, "serve --port 0", "no ink left", code=1)


@pytest.mark.slow
def test_the_traceback_is_in_the_log_at_debug(file: Path, package: Path) -> None:
    body = f"raise RuntimeError({CANARY!r})"
    source = MODULE.format(body=body, parts="lifespan=lifespan")
    (package / "module.py").write_text(source)
    env = {"PYTHONPATH": str(package.parent), "VOPROS_LOG__LEVEL": "debug"}
    refused = vopros("--config", file, "serve", "--port", "0", env=env)
    (line,) = (line for line in refused.stderr.splitlines() if "module.failed" in line)
    assert "in lifespan" in line
    assert refused.stderr.splitlines()[-1].startswith(f"vopros: {BY} cannot be opened")
