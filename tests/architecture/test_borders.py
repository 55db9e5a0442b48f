"""The borders hold, and the check would notice if they did not."""

import ast
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from starlette.middleware.base import BaseHTTPMiddleware

from core.app import create_app
from core.body import BodyGuard
from core.http import HeaderGuard, RequestStep
from core.module import ROOT, in_tree_names
from core.settings import load_settings
from tests.architecture.contracts import check, contracts
from tests.support.process import environment

TREE = ("core", "providers", "modules")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code, to break."""
    for name in TREE:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    return tmp_path


def test_the_borders_hold() -> None:
    assert check(ROOT) == 0


def test_the_borders_hold_in_a_copy(tree: Path) -> None:
    assert check(tree) == 0


@pytest.mark.parametrize(
    ("file", "forbidden", "broken"),
    [
        (
            "modules/questions/service.py",
            "from modules.users.service import StoredUsers",
            "users shows only its public",
        ),
        (
            "modules/auth/repository.py",
            "from modules.users.models import UserRow",
            "users shows only its public",
        ),
        (
            "core/app.py",
            "from modules.users.public import Users",
            "modules above providers above core",
        ),
        (
            "core/health.py",
            "import providers.public",
            "modules above providers above core",
        ),
        (
            "providers/echo.py",
            "from modules.questions.public import x",
            "modules above providers above core",
        ),
        (
            "modules/questions/service.py",
            "import aiohttp",
            "only providers speak HTTP to others",
        ),
        ("core/http.py", "import aiohttp", "only providers speak HTTP to others"),
        (
            "modules/questions/service.py",
            "from providers.registry import make_plan",
            "providers shows only its public",
        ),
        (
            "modules/users/repository.py",
            "from modules.users import router",
            "the layers inside users",
        ),
        (
            "modules/users/service.py",
            "from modules.users import schemas",
            "the layers inside users",
        ),
        (
            "modules/users/public.py",
            "from modules.users.models import UserRow",
            "the layers inside users",
        ),
        (
            "modules/auth/service.py",
            "from providers.public import Chat",
            "auth imports what it requires",
        ),
        (
            "modules/users/service.py",
            "import modules.auth.settings",
            "auth shows only its public",
        ),
    ],
)
def test_a_forbidden_import_is_noticed(
    tree: Path,
    file: str,
    forbidden: str,
    broken: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if "questions.public" in forbidden:
        (tree / "modules/questions/public.py").write_text('"""Published."""\nx = 1\n')
    with (tree / file).open("a") as code:
        code.write(f"\n{forbidden}\n")
    assert check(tree) == 1
    assert f"{broken} BROKEN" in capfd.readouterr().out


def test_importing_what_is_not_required_is_noticed_even_if_it_is_public(
    tree: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tree / "modules/questions/public.py").write_text('"""Published."""\nx = 1\n')
    with (tree / "modules/auth/service.py").open("a") as code:
        code.write("\nfrom modules.questions.public import x\n")
    assert check(tree) == 1
    assert "auth imports what it requires BROKEN" in capfd.readouterr().out


def test_a_new_module_is_covered_by_being_there(
    tree: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    new = tree / "modules" / "notes"
    new.mkdir()
    (new / "__init__.py").write_text('"""Notes."""\n')
    (new / "module.py").write_text(
        'from core.module import Module\n\nMODULE = Module(name="notes")\n'
    )
    (new / "service.py").write_text("x = 1\n")
    assert check(tree) == 0
    with (tree / "modules/questions/service.py").open("a") as code:
        code.write("\nimport modules.notes.service\n")
    assert check(tree) == 1
    assert "notes shows only its public BROKEN" in capfd.readouterr().out


def test_every_module_has_contracts() -> None:
    written = contracts(ROOT)
    for name in in_tree_names():
        assert f"[importlinter:contract:protect-{name}]" in written
        assert f"[importlinter:contract:inside-{name}]" in written


# The kernel knows nobody by name.


def names_of_parts() -> set[str]:
    providers = {entry.name for entry in entry_points(group="vopros.providers")}
    modules = {entry.name for entry in entry_points(group="vopros.modules")}
    return providers | modules | set(in_tree_names())


def names_in(code: str, names: set[str]) -> list[str]:
    """The string literals that are one of the names; docstrings do not count."""
    tree = ast.parse(code)
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value in names
        and id(node) not in docstrings
    ]


def test_no_literal_in_the_kernel_names_a_module_or_a_provider() -> None:
    names = names_of_parts()
    assert {"users", "auth", "questions", "providers", "openai", "echo"} <= names
    for file in (ROOT / "core").rglob("*.py"):
        assert names_in(file.read_text(encoding="utf-8"), names) == [], file


def test_a_name_in_the_kernel_would_be_noticed() -> None:
    code = '"users"\ndef f(x="auth"):\n    """questions"""\n    return {"echo": 1}\n'
    assert sorted(names_in(code, names_of_parts())) == ["auth", "echo"]


# The place is ours.


def test_no_other_distribution_owns_a_name_of_ours() -> None:
    owners = packages_distributions()
    for name in ("core", "modules", "providers", "migrations", "tests"):
        assert set(owners.get(name, [])) <= {"vopros"}, name
        found = importlib.import_module(name)
        assert {Path(path).parent for path in found.__path__} == {ROOT}, name


def test_F17_no_middleware_derives_from_the_one_that_hides_disconnects() -> None:
    app = create_app(load_settings(None, {"VOPROS_LLM__PROVIDER": "echo"}))
    step: Any = app.middleware_stack
    steps = []
    while step is not app.router:
        assert not isinstance(step, BaseHTTPMiddleware)
        steps.append(type(step))
        step = getattr(step, "_app", None) or step.app
    assert {RequestStep, HeaderGuard, BodyGuard} < set(steps)
    # Nobody can put one around them behind our back.
    with pytest.raises(RuntimeError):
        app.add_middleware(BaseHTTPMiddleware)
    sources = [file for part in TREE for file in (ROOT / part).rglob("*.py")]
    for file in sources:
        used = {
            alias.name
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        assert "BaseHTTPMiddleware" not in used, file
        called = re.search(r"\.middleware\(.http", file.read_text(encoding="utf-8"))
        assert called is None, file


@pytest.mark.slow
def test_every_module_of_ours_imports_without_a_warning() -> None:
    names = [
        found.name
        for part in TREE
        for found in pkgutil.walk_packages([str(ROOT / part)], f"{part}.")
        # It runs the command line.
        if found.name != "core.__main__"
    ]
    assert "modules.questions.router" in names
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import {', '.join(names)}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("part", TREE)
def test_every_module_of_ours_can_be_imported_first(part: str) -> None:
    """No import works only because another one went before."""
    code = """
import importlib, sys
for name in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(name)
    for added in set(sys.modules) - before:
        if added.partition(".")[0] in ("core", "modules", "providers"):
            del sys.modules[added]
"""
    files = (ROOT / part).rglob("*.py")
    names = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in files
        if file.stem not in ("__init__", "__main__", "models", "local_server")
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_an_init_is_one_docstring() -> None:
    for part in TREE:
        for file in (ROOT / part).rglob("__init__.py"):
            (only,) = ast.parse(file.read_text(encoding="utf-8")).body
            assert isinstance(only, ast.Expr), file
