"""docker-compose.yml as Compose understands it, for checks that have no engine."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from core.module import ROOT

_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


@dataclass(frozen=True)
class Mount:
    """A named volume in a service."""

    volume: str
    target: str
    is_read_only: bool


class Compose:
    """The file, with the variables of the `outside` put in."""

    def __init__(self, outside: Mapping[str, str] | None = None) -> None:
        self._outside = outside or {}
        text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
        text = _VARIABLE.sub(
            lambda found: self._outside.get(found[1]) or found[2], text
        )
        assert "${" not in text, "a variable without a default"
        self.file: dict[str, Any] = yaml.safe_load(text)
        self.services: dict[str, dict[str, Any]] = self.file["services"]

    def environment(self, service: str) -> dict[str, str]:
        """What the service gets: a name without a value only if it is set outside."""
        found = dict(self.services[service].get("environment", {}))
        for name in [name for name, value in found.items() if value is None]:
            if name in self._outside:
                found[name] = self._outside[name]
            else:
                del found[name]
        assert all(isinstance(value, str) for value in found.values()), found
        return found

    def mounts(self, service: str) -> list[Mount]:
        """The volumes of a service."""
        found = []
        for line in self.services[service].get("volumes", ()):
            volume, target, *mode = line.split(":")
            assert volume in self.file["volumes"], f"{volume} is not a named volume"
            found.append(Mount(volume, target, mode == ["ro"]))
        return found


def dockerfile() -> str:
    """The Dockerfile with continued lines joined and comments gone."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))


def image_environment() -> dict[str, str]:
    """What ENV sets in the final stage."""
    final = dockerfile().rpartition("\nFROM ")[2]
    found: dict[str, str] = {}
    for line in re.findall(r"^ENV (.*)$", final, re.MULTILINE):
        found |= dict(pair.split("=", 1) for pair in line.split())
    return found
