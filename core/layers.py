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
    headers: dict[Keys, str] = field(default_factory=dict)
    """Where a table of the file begins."""
    findings: list[Finding] = field(default_factory=list)
    """What could not be laid over the rest."""

    def origin(self, *path: str) -> str:
        """Where the value at `path` came from; the file for what nobody set."""
        for end in range(len(path), 0, -1):
            if found := self.set_by(*path[:end]):
                return found
        if path in self.headers:
            return self.headers[path]
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
    written = _read_text(path)
    lines, headers = _line_numbers(written)
    raw.headers.update((k, f"{raw.file}:{line}") for k, line in headers.items())
    for keys, value in leaves(_parse_toml(path, written)):
        origin = f"{raw.file}:{lines[keys]}" if keys in lines else raw.file
        _lay(raw, keys, value, origin, layer=0)
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name not in _NO_SETTINGS:
            keys = tuple(name.removeprefix(ENV_PREFIX).lower().split("__"))
            if found := _other_case(raw, keys, name):
                raw.findings.append(found)
                continue
            # A line's end comes along when a file was read into the variable.
            value = environ[name].rstrip("\r\n")
            _lay(raw, keys, value, f"environment {name}", layer=1)
    for keys, value in (overrides or {}).items():
        _lay(raw, keys, value, "command line", layer=2)
    return raw


def _other_case(raw: RawSettings, keys: Keys, variable: str) -> Finding | None:
    """Report a variable that would make a second table beside one of the file.

    The environment is read in small letters; names of tables are not.
    """
    table: Any = raw.tables
    for depth, key in enumerate(keys[:-1]):
        if not isinstance(table, dict):
            return None
        if key not in table:
            for other in table:
                if other.lower() == key:
                    above = ".".join((*keys[:depth], other))
                    problem = (
                        f"differs from [{above}] by letter case only, and a variable"
                        " can set tables with small letters: rename that table"
                    )
                    place = ".".join(keys[:-1])
                    return Finding(f"environment {variable}", place, "", problem)
            return None
        table = table[key]
    return None


def read_secret(path: Path) -> str:
    """Return the text of a file that holds one secret, without its last line's end.

    A byte order mark is no part of it. Raises OSError or UnicodeDecodeError.
    """
    return path.read_text(encoding="utf-8-sig").rstrip("\r\n")


def _read_text(path: Path) -> str:
    try:
        written = path.read_bytes()
    except OSError as exc:
        raise StartRefused(f"{_short(path)}: {exc.strerror}") from exc
    try:
        # Some editors begin with a byte order mark, and end lines with CRLF.
        return written.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as exc:
        line = written[: exc.start].count(b"\n") + 1
        problem = f"not valid TOML (at line {line}): not UTF-8"
        raise StartRefused(f"{_short(path)}: {problem}") from None


def _parse_toml(path: Path, written: str) -> dict[str, Any]:
    try:
        return tomllib.loads(written)
    except tomllib.TOMLDecodeError as exc:
        reason, at, place = str(exc).rpartition(" (at ")
        problem = f"not valid TOML{at}{place}{_reason(reason)}"
        raise StartRefused(f"{_short(path)}: {problem}") from None


def _reason(words: str) -> str:
    """The decoder's words, as far as they repeat no more than a character of the file.

    What stands in the wrong place may be a secret.
    """
    told = re.sub(r"'\\?[^']{1,2}'", "", words)
    if words.startswith("Cannot declare"):
        return ": a table is declared twice"
    if "'" in told or '"' in told or words.startswith(("Cannot", "Duplicate")):
        return ": a key is given twice" if "key" in words or "value" in words else ""
    return f": {words[:1].lower()}{words[1:]}"


def _line_numbers(written: str) -> tuple[dict[Keys, int], dict[Keys, int]]:
    """The lines of keys and of table headers, statement by statement.

    tomllib tells none. A statement ends with the first line that makes it complete.
    """
    keys: dict[Keys, int] = {}
    headers: dict[Keys, int] = {}
    table: Keys = ()
    first, statement = 1, ""
    for number, line in enumerate(written.split("\n"), 1):
        statement = f"{statement}\n{line}" if statement else line
        try:
            found = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        if statement.lstrip().startswith("["):
            ((table, begun),) = leaves(found)
            # A list of tables is a value, which begins with its first header.
            (keys if begun else headers).setdefault(table, first)
        else:
            for path, _ in leaves(found, table):
                keys.setdefault(path, first)
        first, statement = number + 1, ""
    return keys, headers


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
