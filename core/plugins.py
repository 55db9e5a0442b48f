"""What is installed on this machine that could be enabled; none of it is imported."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points

from core.module import in_tree_names

_GROUPS = {"module": "vopros.modules", "provider": "vopros.providers"}


@dataclass(frozen=True)
class Installed:
    """One plugin: `kind` is module or provider, `origin` who brings it."""

    kind: str
    name: str
    origin: str


def installed() -> Iterator[Installed]:
    """Every module and provider that a configuration could name."""
    for name in in_tree_names():
        yield Installed("module", name, f"modules/{name}")
    for kind, group in _GROUPS.items():
        for entry in sorted(entry_points(group=group), key=lambda found: found.name):
            brought_by = entry.dist
            origin = f"{brought_by.name} {brought_by.version}" if brought_by else "?"
            yield Installed(kind, entry.name, f"{origin} ({entry.value})")
