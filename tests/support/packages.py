"""Distributions of strangers, installed into a folder of the test's own.

The folder has to be on the import path. Nothing is built: what an installer leaves
behind is enough for Python to find them.
"""

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent


def install(
    folder: Path,
    distribution: str,
    version: str,
    *,
    entry_points: str,
    files: Mapping[str, str],
) -> None:
    """Install `files` (source by path) as a distribution with these entry points."""
    for path, source in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(source).lstrip(), encoding="utf-8")
    info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    (info / "entry_points.txt").write_text(f"{entry_points}\n", encoding="utf-8")
