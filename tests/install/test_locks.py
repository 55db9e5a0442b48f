"""The lock files are complete, so that installing from them resolves nothing."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from core.module import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REQUIRED = PROJECT["project"]["dependencies"]
NEEDED_BY = {
    "requirements.lock": REQUIRED,
    "requirements-dev.lock": [*REQUIRED, *PROJECT["dependency-groups"]["dev"]],
    "requirements-openapi.lock": PROJECT["dependency-groups"]["openapi"],
}
ENVIRONMENTS = [
    {"python_version": version, "python_full_version": f"{version}.1"} | platform
    for version in ("3.11", "3.12", "3.13")
    for platform in (
        {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
        {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
        {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
    )
]


@dataclass(frozen=True)
class Pin:
    """One entry of a lock file."""

    version: Version
    requirement: Requirement


def pins(lock: Path) -> dict[str, list[Pin]]:
    """The entries of a lock file by name; several where markers tell them apart."""
    found: dict[str, list[Pin]] = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith((" ", "#")):
            requirement = Requirement(line.removesuffix("\\").strip())
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            name = canonicalize_name(requirement.name)
            found.setdefault(name, []).append(Pin(Version(pin.version), requirement))
    return found


def environment_of(changes: Mapping[str, str]) -> dict[str, str]:
    """Marker values of this machine, with some of another one's."""
    return {key: str(value) for key, value in default_environment().items()} | {
        **changes
    }


def missing(
    locked: Mapping[str, list[Pin]], needed: list[str], environment: Mapping[str, str]
) -> Iterator[str]:
    """What the distributions require, extras included, and the lock does not hold.

    A distribution that this machine has not installed requires nothing here.
    """
    everywhere = environment_of(environment)
    todo = [("the project", Requirement(line), "") for line in needed]
    seen = set()
    while todo:
        by, requirement, extra = todo.pop()
        marker = requirement.marker
        if marker and not marker.evaluate({**everywhere, "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        held = [
            pin
            for pin in locked.get(name, ())
            if pin.requirement.marker is None
            or pin.requirement.marker.evaluate(everywhere)
        ]
        if len(held) != 1 or held[0].version not in requirement.specifier:
            yield f"{by} requires {requirement}: {[str(p.version) for p in held]}"
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                todo += ((name, more, wanted) for more in required_by(name))


def required_by(name: str) -> list[Requirement]:
    try:
        return [Requirement(line) for line in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError:
        return []


@pytest.mark.parametrize("name", NEEDED_BY)
def test_a_lock_holds_all_that_its_distributions_require(name: str) -> None:
    locked = pins(ROOT / name)
    for environment in ENVIRONMENTS:
        absent = list(missing(locked, NEEDED_BY[name], environment))
        assert not absent, environment


def test_a_requirement_of_an_extra_that_the_lock_lacks_is_found() -> None:
    locked = pins(ROOT / "requirements.lock")
    del locked["argon2-cffi"]  # required only by libpass[argon2]
    del locked["pycparser"]  # required only by what that requires
    absent = list(missing(locked, REQUIRED, ENVIRONMENTS[0]))
    assert [line.partition(" requires ")[0] for line in absent] == ["libpass", "cffi"]
    cffi = locked.pop("cffi")
    locked["cffi"] = [Pin(Version("0.1"), cffi[0].requirement)]
    assert any("['0.1']" in line for line in missing(locked, REQUIRED, {}))


def test_what_is_installed_is_what_is_locked() -> None:
    environment = environment_of({})
    for name, held in pins(ROOT / "requirements-dev.lock").items():
        for pin in held:
            marker = pin.requirement.marker
            if marker is None or marker.evaluate(environment):
                assert Version(metadata.version(name)) == pin.version, name


def installs(text: str) -> list[str]:
    """The commands of a Makefile or Dockerfile that install from a lock."""
    text = re.sub(r"\\\n\s*", " ", text)
    pattern = r"^.*pip\)? .*-r requirements\S*|^.*\$\(PIP\).*-r requirements\S*"
    return re.findall(pattern, text, re.MULTILINE)


@pytest.mark.parametrize(("file", "count"), [("Makefile", 5), ("Dockerfile", 2)])
def test_every_install_from_a_lock_resolves_nothing(file: str, count: int) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    commands = installs(text)
    assert len(commands) == count, commands
    locked = re.search(r"^LOCKED := (.*)$", text, re.MULTILINE)
    for command in commands:
        if locked is not None:
            command = command.replace("$(LOCKED)", locked[1])
        assert "--require-hashes" in command, command
        assert "--no-deps" in command, command
