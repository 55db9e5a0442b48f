"""`vopros make-secret`: secrets that are made once and never overwritten."""

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modules.auth.secret import weakness


def make_secret(*files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "core", "make-secret", *map(str, files)],
        capture_output=True,
        text=True,
    )


def test_each_file_gets_a_secret_of_its_own_that_only_its_owner_can_read(
    tmp_path: Path,
) -> None:
    files = [tmp_path / "secrets" / name for name in ("signing", "database")]
    done = make_secret(*files)
    assert done.returncode == 0, done.stderr
    secrets = [file.read_text(encoding="ascii").strip() for file in files]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 2
    assert [weakness(secret) for secret in secrets] == [None, None]
    assert len(set(secrets)) == 2
    assert not any(secret in done.stdout + done.stderr for secret in secrets)
    assert sorted(file.name for file in files[0].parent.iterdir()) == [
        "database",
        "signing",
    ]


def test_a_secret_that_is_there_stays(tmp_path: Path) -> None:
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.write_text("the operator's own", encoding="ascii")
    done = make_secret(there, missing)
    assert done.stdout == f"{there}: kept\n{missing}: made\n"
    assert there.read_text(encoding="ascii") == "the operator's own"


def test_four_at_once_agree_on_one_secret(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    with ThreadPoolExecutor(4) as pool:
        done = pool.map(make_secret, [file] * 4)
    said = sorted(run.stdout for run in done)
    assert said == [f"{file}: kept\n"] * 3 + [f"{file}: made\n"]
    assert [found.name for found in tmp_path.iterdir()] == ["secret"]


def test_a_file_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("", encoding="ascii")
    done = make_secret(in_the_way / "secret")
    assert done.returncode == 1
    file = in_the_way / "secret"
    why = "the secret cannot be kept here: File exists"
    assert done.stderr == f"vopros: {file}: {why}\n"
