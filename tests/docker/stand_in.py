"""Base images made of Debian packages, for a machine that cannot reach a registry.

They bear the names of the images that they stand in for, so they are made only in an
engine that is thrown away. The mirror, pip's index and the CA bundle are the machine's.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
_CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_APT = Path("/etc/apt")
_PACKAGES = "ca-certificates,python3,python3-venv"


class StandInFailed(Exception):
    """A package could not be had; the message is one line."""


def make_stand_ins(
    docker: Callable[..., str], python: str, postgres: str, folder: Path
) -> None:
    """Make both images in the engine that `docker` runs; `folder` is for files.

    Raises StandInFailed when Debian's mirror cannot be reached.
    """
    root = folder / "rootfs"
    sources = next(
        file
        for file in (_APT / "sources.list.d/debian.sources", _APT / "sources.list")
        if file.exists()
    )
    _debootstrap(_release(python), root, _mirror(sources))
    _configure(root, sources)
    archive = folder / "rootfs.tar"
    subprocess.run(["tar", "-C", root, "-cf", archive, "."], check=True)
    docker("import", "--change", "ENV LANG=C.UTF-8", str(archive), python)
    base = ("--build-arg", f"BASE={python}", "--network", "host")
    docker("build", *base, "--tag", postgres, str(HERE / "postgres"))


def _release(image: str) -> str:
    return image.rpartition("-")[2]


def _mirror(sources: Path) -> str:
    found = re.search(
        r"^(?:URIs:|deb(?: +\[.*?\])?) +(\S+)", sources.read_text(), re.MULTILINE
    )
    assert found, f"{sources} names no mirror"
    return found[1]


def _debootstrap(release: str, root: Path, mirror: str) -> None:
    done = subprocess.run(
        [
            # If interrupted, it leaves neither a mount nor a process.
            *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("debootstrap", "--variant=minbase", f"--include={_PACKAGES}"),
            *(release, root, mirror),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise StandInFailed(done.stdout.strip().rpartition("\n")[2])


def _configure(root: Path, sources: Path) -> None:
    """Let apt and pip reach their indexes as on this machine."""
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    shutil.copy(sources, root / sources.relative_to("/"))
    shutil.copytree(
        _APT / "apt.conf.d", root / "etc/apt/apt.conf.d", dirs_exist_ok=True
    )
    shutil.copy(_CA_BUNDLE, root / _CA_BUNDLE.relative_to("/"))
    lines = [f"{name} = {value}\n" for name, value in _pip_options().items()]
    (root / "etc/pip.conf").write_text(f"[global]\n{''.join(lines)}")
    # Where the image has its interpreter.
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")


def _pip_options() -> dict[str, str]:
    """The options of pip that say how this machine reaches an index."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    options = {"cert": str(_CA_BUNDLE)}
    # The environment comes first in the list and counts for more than a file.
    for name, value in re.findall(
        r"^(?:global|:env:)\.(index-url|proxy|trusted-host)='(.*)'$",
        listed,
        re.MULTILINE,
    ):
        options.setdefault(name, value)
    return options
