"""`vopros providers`: who will be asked, in which order, on what, by whose plugin."""

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.process import assert_refused, vopros
from tests.support.strange_models import install
from tests.support.upstream import KEY

OURS = f"of vopros {version('vopros')}"
TABLES = f"""
[providers.main]
type = "openai"
base_url = "https://api.example.org:8443/v1"
model = "large"
api_key = "{KEY}"
proxy = "http://user:{KEY}@proxy:1080"
[providers.keyed]
type = "openai"
base_url = "https://api.example.org/v1"
model = "small"
api_key = "${{SOME_KEY}}"
[providers.echo]
type = "echo"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "app.toml"


def shown(file: Path, **env: str) -> tuple[list[list[str]], list[str]]:
    """The table's rows without their headings, and the lines around it."""
    done = vopros("--config", file, "providers", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert KEY not in done.stdout
    lines = done.stdout.splitlines()
    table = [re.split(r" {2,}", line) for line in lines if re.search(r"\S {2,}", line)]
    assert table[0] == ["asked", "name", "type", "model", "host", "origin"]
    around = [line for line in lines if not re.search(r"\S {2,}", line)]
    return table[1:], around


def test_the_plan_is_in_the_order_of_being_asked(file: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "site").mkdir()
    install(folder, "friendly")
    guest = f'[providers.guest]\ntype = "friendly"\napi_key = "{KEY}"\n'
    llm = '[llm]\nprovider = "main"\nfallback = ["guest", "echo"]\n'
    file.write_text(llm + TABLES + guest)
    rows, around = shown(file, PYTHONPATH=str(folder))
    demo = "a demonstration without a language model"
    strange = "plugin 'friendly' of strange-models 1.2.3"
    api = "api.example.org:8443"
    assert rows == [
        ["first", "main", "openai", "large", api, f"plugin 'openai' {OURS}"],
        ["next", "guest", "friendly", "-", "-", strange],
        ["next", "echo", "echo", demo, "-", f"plugin 'echo' {OURS}"],
    ]
    assert around == []


@pytest.mark.slow
def test_auto_shows_its_candidates_and_why_others_are_none(file: Path) -> None:
    file.write_text('[llm]\nauto = ["keyed", "gone", "main", "echo"]\n' + TABLES)
    rows, around = shown(file)
    assert [row[:2] for row in rows] == [["candidate", "main"], ["candidate", "echo"]]
    assert around == [
        "auto: the first candidate that can be opened is asked",
        "passed over: keyed: the variable SOME_KEY is not set",
        "passed over: gone: there is no [providers.gone]",
    ]
    rows, around = shown(file, SOME_KEY=KEY, VOPROS_LLM__FALLBACK="echo")
    names = ["keyed", "main", "echo", "echo"]
    assert [row[1] for row in rows] == names
    assert [row[0] for row in rows] == ["candidate"] * 3 + ["next"]


def test_a_plan_that_is_wrong_is_refused(file: Path) -> None:
    file.write_text('[llm]\nprovider = "mian"\n' + TABLES)
    refused = vopros("--config", file, "providers")
    assert_refused(refused, "[llm] provider: ", "did you mean 'main'?", code=78)
