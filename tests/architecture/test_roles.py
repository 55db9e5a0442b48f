"""Nobody becomes an administrator but by the command line (A5)."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.module import ROOT

TREE = ("core", "providers", "modules")
# Who may say it, and where. All but the commands is out of reach of a route: nothing
# imports `accounts` but what opens it and what the command line runs.
ALLOWED = {
    ("imports accounts", "modules/auth/module.py"),
    ("imports accounts", "modules/auth/commands.py"),
    ("makes with a role", "modules/auth/accounts.py"),
    ("calls set_role", "modules/auth/accounts.py"),
    ("calls set_role", "modules/auth/commands.py"),
    ("calls set_role", "modules/users/service.py"),
    ("calls create_admin", "modules/auth/commands.py"),
    ("writes role", "modules/users/repository.py"),
}


def findings(root: Path) -> set[tuple[str, str]]:
    """What in the code has to do with giving somebody a role."""
    return {
        (found, str(file.relative_to(root)))
        for folder in TREE
        for file in sorted((root / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for found in _about(node)
    }


def _about(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom):
        names = {node.module, *(alias.name for alias in node.names)}
        if names & {"modules.auth.accounts", "accounts"}:
            yield "imports accounts"
    elif isinstance(node, ast.Import):
        if any(alias.name == "modules.auth.accounts" for alias in node.names):
            yield "imports accounts"
    elif isinstance(node, ast.Call):
        yield from _about_call(node)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        words = node.value.lower().split()
        if words[:2] == ["update", "users"] or words[:3] == ["insert", "into", "users"]:
            yield "writes role"


def _about_call(node: ast.Call) -> Iterator[str]:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if name in ("set_role", "create_admin"):
        yield f"calls {name}"
    if name == "NewUser" and (len(node.args) != 1 or node.keywords):
        yield "makes with a role"
    if name == "values" and "'role'" in ast.dump(node):
        yield "writes role"


def test_A05_no_code_that_a_route_can_reach_gives_a_role() -> None:
    assert findings(ROOT) <= ALLOWED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "added"),
    [
        ("modules/users/router.py", "users.set_role(session, 1, role)"),
        ("modules/auth/router.py", "from modules.auth.accounts import Accounts"),
        ("modules/auth/service.py", "from modules.auth import accounts"),
        ("modules/auth/service.py", "NewUser(username, role)"),
        ("modules/auth/service.py", "NewUser(username, role=Role.ADMIN)"),
        ("modules/users/service.py", "update(UserRow).values(role=role)"),
        ("modules/users/service.py", 'update(UserRow).values({"role": role})'),
        ("modules/questions/service.py", 'text("UPDATE users SET role = :role")'),
        ("modules/users/router.py", "accounts.create_admin(name, password)"),
    ],
)
def test_A05_such_code_would_be_noticed(tmp_path: Path, file: str, added: str) -> None:
    for name in TREE:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    path = tmp_path / file
    path.write_text(f"{path.read_text()}\n{added}\n", encoding="utf-8")
    assert not findings(tmp_path) <= ALLOWED
