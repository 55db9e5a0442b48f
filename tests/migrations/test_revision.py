"""`make revision` where nothing has been set up yet."""

import sys
from pathlib import Path

from tests.install.test_fresh_install import clone, run

COLUMN = "    nickname: Mapped[str | None] = mapped_column(String(40))\n"


def test_a_revision_is_written_in_a_fresh_clone(tmp_path: Path) -> None:
    fresh = clone(tmp_path / "fresh")
    with (fresh / "modules" / "users" / "models.py").open("a") as models:
        models.write(COLUMN)
    before = {file for file in fresh.rglob("*") if "__pycache__" not in file.parts}

    # Installed already, which takes minutes.
    installed = ("-o", f"{sys.prefix}/.run", f"VENV={sys.prefix}")
    said = run(
        *("make", *installed, "revision", "MODULE=users", "MESSAGE=Add nicknames"),
        cwd=fresh,
    )

    after = {file for file in fresh.rglob("*") if "__pycache__" not in file.parts}
    (written,) = after - before
    assert said.strip() == str(written)
    assert written.parent == fresh / "migrations" / "users"
    code = written.read_text()
    assert '"""Add nicknames."""' in code
    assert code.count("add_column(") == code.count("drop_column('nickname')") == 1
