"""The layers of the configuration: one TOML file, the environment, the command line.

What is wrong anywhere is a `Finding`: file, table, key and the nearest name that would
have been right, never the value.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import StartRefused
from core.module import ROOT

ENV_PREFIX = "VOPROS_"
CONFIG_VARIABLE = "VOPROS_CONFIG"
# VOPROS_HOME tells scripts around a server where the project lies: not a setting.
_NO_SETTINGS = (CONFIG_VARIABLE, "VOPROS_HOME")
DEFAULT_FILE = ROOT / "config" / "app.toml"
Keys = tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One thing wrong with the configuration. It never holds a value."""

    origin: str
    table: str
    key: str
    problem: str
    hint: str = ""
    is_unset: bool = False
    """Only a variable is missing: harmless for what nobody has to use."""

    @property
    def path(self) -> Keys:
        """The tables and the key; of what is in a list, the list's."""
        return (*self.table.split("."), re.sub(r"\[\d+\].*", "", self.key))

    def __str__(self) -> str:
        place = f"[{self.table}] {self.key}".rstrip() if self.table else self.key
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.origin}: {place}: {self.problem}{hint}"


class ConfigurationRefused(StartRefused):
    """The configuration is wrong; `findings` say where, one line each."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))


@dataclass(frozen=True)
class RawSettings:
    """The layers laid over each other, each value with the place that it came from."""

    file: str
    tables: dict[str, Any] = field(default_factory=dict)
    origins: dict[Keys, str] = field(default_factory=dict)
    layers: dict[Keys, int] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    def origin(self, *path: str) -> str:
        """Where the value at `path` came from; the file for what nobody set."""
        for end in range(len(path), 0, -1):
            if found := self.set_by(*path[:end]):
                return found
        # A table comes from the lowest layer that has any of its keys.
        below = [keys for keys in self.origins if keys[: len(path)] == path]
        lowest = min(below, key=self.layers.__getitem__, default=())
        return self.origins.get(lowest, self.file)

    def set_by(self, *path: str) -> str | None:
        """Who set this very value, or the file that it is in; None for nobody."""
        given = [keys for keys in (path, _file_of(path)) if keys in self.origins]
        return self.origins[max(given, key=self.layers.__getitem__)] if given else None


def _file_of(path: Keys) -> Keys:
    """The key that names a file in the place of the value at `path`."""
    return (*path[:-1], f"{path[-1]}_file")


def read_layers(
    file: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[Keys, str] | None = None,
) -> RawSettings:
    """Read the file, then the environment, then the command line over it.

    Raises StartRefused when the file cannot be read as TOML.
    """
    path = file or Path(environ.get(CONFIG_VARIABLE) or DEFAULT_FILE)
    raw = RawSettings(file=_short(path), environ=dict(environ))
    for keys, value in leaves(_read_toml(path)):
        _lay(raw, keys, value, raw.file, layer=0)
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name not in _NO_SETTINGS:
            keys = tuple(name.removeprefix(ENV_PREFIX).lower().split("__"))
            _lay(raw, keys, environ[name], f"environment {name}", layer=1)
    for keys, value in (overrides or {}).items():
        _lay(raw, keys, value, "command line", layer=2)
    return raw


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise StartRefused(f"{_short(path)}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        # The decoder's words may quote the line, and the line may hold a secret.
        place = re.search(r"\(at [^()]*\)$", str(exc))
        where = f" {place[0]}" if place else ""
        raise StartRefused(f"{_short(path)}: not valid TOML{where}") from None


def _short(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def leaves(table: Mapping[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _lay(raw: RawSettings, keys: Keys, value: Any, origin: str, layer: int) -> None:
    table = raw.tables
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise StartRefused(f"{origin}: {key} is not a table")
    table[keys[-1]] = value
    raw.origins[keys] = origin
    raw.layers[keys] = layer


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, or which there are."""
    names = sorted(known)
    if found := closest(name, names):
        return f"did you mean {found!r}?"
    return f"there are: {', '.join(names)}" if names else "there are none"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant."""
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return found[0] if found else None
