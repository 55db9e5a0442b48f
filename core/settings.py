"""Configuration: one TOML file, then the environment, then the command line.

Every table belongs to whoever reads it: the kernel's are below, a module brings its
own. A wrong key, value or reference is a finding: file, table, key and the nearest name
that would have been right, never the value.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    SecretStr,
    ValidationError,
)

from core.errors import StartRefused
from core.module import (
    ROOT,
    Module,
    in_tree_names,
    installed_names,
    known_modules,
    load_modules,
)

ENV_PREFIX = "VOPROS_"
CONFIG_VARIABLE = "VOPROS_CONFIG"
DEFAULT_FILE = ROOT / "config" / "app.toml"
_SECRETIVE = re.compile(
    r"key|secret|token(?!s)|password|authorization|header|proxy", re.IGNORECASE
)
_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class Section(BaseModel):
    """A table of the configuration file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NamedTables(RootModel[dict[str, dict[str, Any]]]):
    """A section of tables with free names, left as written for its owner to read."""

    keeps_references: ClassVar[bool] = True


def _split(value: Any) -> Any:
    """Let the environment give a list as JSON or as words between commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [word.strip() for word in value.split(",") if word.strip()]


Words = Annotated[tuple[str, ...], BeforeValidator(_split)]


class ServerSettings(Section):
    """[server]: where and how the API is served."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    root_path: str = Field("", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    docs: bool = True
    allowed_hosts: Words = ()
    trusted_proxies: Words = ()
    longest_body_bytes: int = Field(65_536, gt=0)
    longest_headers_bytes: int = Field(32_768, gt=0)
    body_seconds: float = Field(30, gt=0)
    shutdown_seconds: int = Field(25, ge=0)


class DatabaseSettings(Section):
    """[database]: where everything is stored."""

    url: SecretStr = SecretStr("sqlite+aiosqlite:///var/vopros.db")
    password: SecretStr | None = None
    pool_size: int = Field(10, gt=0)
    pool_wait_seconds: float = Field(3, gt=0)
    connect_seconds: float = Field(5, gt=0)
    command_seconds: float = Field(10, gt=0)
    lock_seconds: float = Field(5, gt=0)
    start_seconds: float = Field(60, gt=0)
    migrate_on_start: bool | None = None


class ModulesSettings(Section):
    """[modules]: what there is; not set, every module in the tree."""

    enabled: Words | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return in_tree_names() if self.enabled is None else self.enabled


class LogSettings(Section):
    """[log]: what is written to standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["text", "json"] = "text"


CORE_SECTIONS: Mapping[str, type[Section]] = {
    "server": ServerSettings,
    "database": DatabaseSettings,
    "modules": ModulesSettings,
    "log": LogSettings,
}


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

    def __str__(self) -> str:
        place = f"[{self.table}] {self.key}".rstrip() if self.table else self.key
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.origin}: {place}: {self.problem}{hint}"


class ConfigurationRefused(StartRefused):
    """The configuration is wrong; `findings` say where, one line each."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(findings)
        super().__init__("\n".join(str(finding) for finding in self.findings))


Keys = tuple[str, ...]


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
            for keys in (path[:end], _file_of(path[:end])):
                if found := self.origins.get(keys):
                    return found
        # A table comes from wherever its first key does.
        below = (self.origins[k] for k in self.origins if k[: len(path)] == path)
        return next(below, self.file)


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
    for keys, value in _leaves(_read_toml(path)):
        _lay(raw, keys, value, raw.file, layer=0)
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name != CONFIG_VARIABLE:
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


def _leaves(table: Mapping[str, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
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


M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Settings:
    """The whole configuration, checked: its sections, and the modules it enables."""

    raw: RawSettings
    sections: Mapping[str, BaseModel]
    modules: tuple[Module, ...]

    def section(self, kind: type[M]) -> M:
        """Return the section of this class."""
        for section in self.sections.values():
            if isinstance(section, kind):
                return section
        raise LookupError(f"no module reads a {kind.__name__}")

    @property
    def is_embedded(self) -> bool:
        """SQLite on a loopback address; any other server must be given its secrets."""
        url = self.section(DatabaseSettings).url.get_secret_value()
        return url.startswith("sqlite") and is_loopback(
            self.section(ServerSettings).host
        )

    def findings(self) -> Iterator[Finding]:
        """What the modules themselves find wrong."""
        for module in self.modules:
            if module.check is not None:
                yield from module.check(self)


def load_settings(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[Keys, str] | None = None,
) -> Settings:
    """Read, check and return the configuration.

    Raises ConfigurationRefused with every finding at once, or StartRefused.
    """
    raw = read_layers(file, os.environ if environ is None else environ, overrides)
    sections: dict[str, BaseModel] = {}
    findings: list[Finding] = []
    findings += _read_sections(raw, CORE_SECTIONS, sections)
    if "modules" not in sections:
        raise ConfigurationRefused(findings)
    enabled = sections["modules"]
    assert isinstance(enabled, ModulesSettings)
    if unknown := list(_unknown_modules(raw, enabled)):
        raise ConfigurationRefused([*findings, *unknown])
    modules = load_modules(enabled.names)
    for module in modules:
        findings += _read_sections(raw, module.sections, sections)
    findings += _unknown_tables(raw, modules)
    if findings:
        raise ConfigurationRefused(findings)
    settings = Settings(raw, sections, modules)
    if findings := list(settings.findings()):
        raise ConfigurationRefused(findings)
    return settings


def _unknown_modules(raw: RawSettings, modules: ModulesSettings) -> Iterator[Finding]:
    known = installed_names()
    for name in modules.names:
        if name not in known:
            origin, hint = raw.origin("modules", "enabled"), nearest(name, known)
            problem = f"there is no module {name!r}"
            yield Finding(origin, "modules", "enabled", problem, hint)


def _read_sections(
    raw: RawSettings,
    kinds: Mapping[str, type[BaseModel]],
    into: dict[str, BaseModel],
) -> Iterator[Finding]:
    for name, kind in kinds.items():
        section, findings = read_table(raw, (name,), kind)
        yield from findings
        if section is not None:
            into[name] = section


def _unknown_tables(raw: RawSettings, modules: Iterable[Module]) -> Iterator[Finding]:
    known = list(CORE_SECTIONS)
    for module in known_modules(modules):
        known += module.sections
    for name in raw.tables:
        if name not in known:
            problem = "there is no such table"
            yield Finding(raw.origin(name), name, "", problem, nearest(name, known))


def read_table(
    raw: RawSettings, path: Keys, kind: type[M]
) -> tuple[M | None, list[Finding]]:
    """Read one table as `kind`: references and secret files resolved, then checked."""
    findings: list[Finding] = []
    table = _at(raw, path)
    if not isinstance(table, dict):
        problem = "must be a table"
        return None, [Finding(raw.origin(*path), path[0], "", problem)]
    if not getattr(kind, "keeps_references", False):
        table, secrets = _read_secret_files(raw, path, table, kind, findings)
        # What a file holds is taken as it is, even if it looks like a reference.
        table = _resolve(raw, path, table, findings) | secrets
    if findings:
        return None, findings
    try:
        return kind.model_validate(table), []
    except ValidationError as exc:
        return None, [_finding(raw, path, kind, dict(error)) for error in exc.errors()]


def _at(raw: RawSettings, path: Keys) -> Any:
    found: Any = raw.tables
    for key in path:
        found = found.get(key, {})
    return found


def _read_secret_files(
    raw: RawSettings,
    path: Keys,
    table: dict[str, Any],
    kind: type[BaseModel],
    findings: list[Finding],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Any secret `x` may be given as `x_file`, the path of a file that holds it.

    Returns what is left of the table, and the secrets.
    """
    table, secrets = dict(table), {}
    for name, info in kind.model_fields.items():
        key = f"{name}_file"
        if "SecretStr" not in str(info.annotation) or key in kind.model_fields:
            continue
        file = table.pop(key, None)
        where = raw.origin(*path, key)
        value_layer = raw.layers.get((*path, name), -1)
        file_layer = raw.layers.get((*path, key), 0)
        if not file or value_layer > file_layer:
            continue
        if value_layer == file_layer:
            problem = f"{name} is given as well: one of them has to go"
            findings.append(Finding(where, ".".join(path), key, problem))
            continue
        table.pop(name, None)
        file = _resolve(raw, (*path, key), file, findings)
        try:
            secret = Path(str(file)).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            problem = "this file cannot be read"
            findings.append(Finding(where, ".".join(path), key, problem))
        else:
            secrets[name] = secret.rstrip("\r\n")
    return table, secrets


def _resolve(raw: RawSettings, path: Keys, value: Any, findings: list[Finding]) -> Any:
    """Put the variables' values in the place of `${NAME}`, at any depth."""
    if isinstance(value, dict):
        return {k: _resolve(raw, (*path, k), v, findings) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(raw, path, item, findings) for item in value]
    if not isinstance(value, str):
        return value

    def substitute(reference: re.Match[str]) -> str:
        found = _variable(raw.environ, reference[1])
        if not found:
            table, key = ".".join(path[:-1]), path[-1]
            problem = f"the variable {reference[1]} is not set"
            where = raw.origin(*path)
            findings.append(Finding(where, table, key, problem, is_unset=True))
        return found or ""

    return _REFERENCE.sub(substitute, value)


def _variable(environ: Mapping[str, str], name: str) -> str:
    """A variable, or the content of the file that `NAME_FILE` names; empty is unset."""
    if value := environ.get(name, ""):
        return value
    if file := environ.get(f"{name}_FILE", ""):
        try:
            return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            return ""
    return ""


def _finding(
    raw: RawSettings, path: Keys, kind: type[BaseModel], error: dict[str, Any]
) -> Finding:
    loc = [str(part) for part in error["loc"]]
    key = loc[0] if loc else ""
    where = raw.origin(*path, *loc)
    table = ".".join(path)
    if error["type"] == "extra_forbidden":
        hint = nearest(key, kind.model_fields)
        return Finding(where, table, key, "there is no such key", hint)
    if error["type"] == "missing":
        return Finding(where, table, key, "this key is needed")
    problem = str(error["msg"]).removeprefix("Value error, ")
    return Finding(where, table, key, problem[:1].lower() + problem[1:])


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, or which there are."""
    names = sorted(known)
    if found := difflib.get_close_matches(name, names, n=1, cutoff=0.5):
        return f"did you mean {found[0]!r}?"
    return f"there are: {', '.join(names)}" if names else "there are none"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def describe(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield every key with its value, secrets masked, and where the value came from."""
    for name, section in settings.sections.items():
        if isinstance(section, NamedTables):
            yield from _describe_tables(settings.raw, name, section)
            continue
        for key in type(section).model_fields:
            origin = settings.raw.origins.get((name, key))
            origin = origin or settings.raw.origins.get((name, f"{key}_file"))
            yield f"{name}.{key}", _shown(getattr(section, key)), origin or "default"


def _describe_tables(
    raw: RawSettings, name: str, tables: NamedTables
) -> Iterator[tuple[str, str, str]]:
    for keys, value in _leaves(tables.root, (name,)):
        # Nobody has said yet which of these are secrets: what looks like one is one.
        hidden = _SECRETIVE.search(".".join(keys[2:])) or "@" in str(value)
        shown = value
        if hidden and not _REFERENCE.fullmatch(str(value)):
            shown = "**********"
        yield ".".join(keys), _shown(shown), raw.origin(*keys)


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr):
        return str(value)
    if value is None:
        return "(not set)"
    return json.dumps(value, ensure_ascii=False, default=str)
