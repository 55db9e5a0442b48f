"""Options of the program itself: before the command, or after it."""

from importlib.metadata import version
from pathlib import Path

import pytest

from tests.support.config import write_config
from tests.support.process import vopros


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_config(tmp_path / "app.toml", f"sqlite+aiosqlite:///{tmp_path}/v.db")


def test_the_version_is_that_of_the_distribution() -> None:
    shown = vopros("--version")
    assert (shown.returncode, shown.stdout) == (0, f"vopros {version('vopros')}\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("--config", "FILE", "config", "show"),
        ("config", "--config", "FILE", "show"),
        ("config", "show", "--config", "FILE"),
        ("config", "show", "--config=FILE"),
        ("--config=FILE", "config", "show"),
    ],
    ids=" ".join,
)
def test_the_file_may_be_named_anywhere(file: Path, command: tuple[str, ...]) -> None:
    shown = vopros(*(word.replace("FILE", str(file)) for word in command))
    assert shown.returncode == 0, shown.stderr
    assert f"# {file}" in shown.stdout


def test_the_file_is_named_once_and_has_a_name(file: Path) -> None:
    twice = vopros("--config", file, "config", "show", "--config", file)
    assert twice.returncode == 2
    assert twice.stderr == "vopros: --config is given more than once\n"
    nothing = vopros("config", "show", "--config")
    assert nothing.returncode == 2
    assert "--config" in nothing.stderr


def test_what_follows_two_dashes_is_no_option(file: Path) -> None:
    made = vopros("make-secret", "--", file.parent / "--config", file.parent / "b")
    assert made.returncode == 0, made.stderr
    assert (file.parent / "--config").exists()
