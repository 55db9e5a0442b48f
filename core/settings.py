"""The checked configuration: the kernel's own sections, and everybody else's.

Every table belongs to whoever reads it: the kernel's are below, a module brings its
own. `layers` reads them all, `tables` checks each.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, SecretStr

from core.layers import (
    ConfigurationRefused,
    Finding,
    Keys,
    RawSettings,
    leaves,
    nearest,
    read_layers,
)
from core.module import (
    Module,
    in_tree_names,
    installed_names,
    known_modules,
    load_modules,
)
from core.tables import (
    REFERENCE,
    M,
    NamedTables,
    Section,
    Words,
    holds_secrets,
    read_table,
)

# What is called so is masked, whoever reads it: numbers of tokens and seconds are not.
_SECRETIVE = re.compile(
    r"(^|[._-])(api_?)?key$|secret|token(?!s|_seconds)|password", re.IGNORECASE
)
# And this, where nobody has said yet what is a secret.
_SUSPECT = re.compile(
    r"key|secret|token(?!s|_seconds)|password|authorization|header|query|proxy",
    re.IGNORECASE,
)
_MASK = "**********"


class ServerSettings(Section):
    """[server]: where and how the API is served."""

    host: str = "127.0.0.1"
    """The address to listen on."""
    port: int = Field(8000, ge=0, le=65535)
    """0 takes any that is free."""
    workers: int = Field(1, ge=1, le=1_000)
    """Processes that serve; each has its own connections and its own view of things."""
    root_path: str = Field("", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    """The path a reverse proxy serves this under."""
    docs: bool = True
    """Serve /docs, /redoc and /openapi.json."""
    allowed_hosts: Words = ()
    """Names this server answers to. Empty: the loopback names on a loopback address,
    else any."""
    trusted_proxies: Words = ()
    """Addresses whose X-Forwarded-For is believed."""
    longest_body_bytes: int = Field(65_536, gt=0)
    """A longer request body is refused with 413."""
    longest_headers_bytes: int = Field(32_768, gt=0)
    """Longer request headers are refused with 431."""
    body_seconds: float = Field(30, gt=0)
    """How long a request body may take to arrive."""
    shutdown_seconds: int = Field(25, ge=0)
    """How long what is under way may go on once the server is told to stop."""


class DatabaseSettings(Section):
    """[database]: where everything is stored."""

    url: SecretStr = SecretStr("sqlite+aiosqlite:///var/vopros.db")
    """postgresql+asyncpg://user@host/name for everything but one small server. A
    relative path of SQLite begins at the folder of the project."""
    password: SecretStr | None = None
    """Instead of in the URL."""
    pool_size: int = Field(10, gt=0)
    """How many connections there are at most."""
    pool_wait_seconds: float = Field(3, gt=0)
    """How long a request waits for a connection; then 503 with Retry-After."""
    connect_seconds: float = Field(5, gt=0)
    """How long connecting may take."""
    command_seconds: float = Field(10, gt=0)
    """How long one statement may take."""
    lock_seconds: float = Field(5, gt=0)
    """How long a write waits for another's; then 503."""
    start_seconds: float = Field(60, gt=0)
    """How long a start waits for a database that does not answer yet, and a migration
    for another one that is under way."""
    migrate_on_start: bool | None = None
    """Not set: true for SQLite, false for PostgreSQL."""


class ModulesSettings(Section):
    """[modules]: what there is; not set, every module in the tree."""

    enabled: Words | None = None
    """Not set: every folder under modules/. What a module requires comes along."""

    @property
    def names(self) -> tuple[str, ...]:
        return in_tree_names() if self.enabled is None else self.enabled


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


class LogSettings(Section):
    """[log]: what is written to standard error."""

    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)
    ] = "INFO"
    """Nothing below it is written."""
    format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object each."""


CORE_SECTIONS: Mapping[str, type[Section]] = {
    "server": ServerSettings,
    "database": DatabaseSettings,
    "modules": ModulesSettings,
    "log": LogSettings,
}


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
        return self.is_sqlite and is_loopback(self.section(ServerSettings).host)

    @property
    def is_sqlite(self) -> bool:
        url = self.section(DatabaseSettings).url.get_secret_value()
        return url.startswith("sqlite")

    def findings(self) -> Iterator[Finding]:
        """What no section can say alone, and what the modules find wrong."""
        if self.is_sqlite and self.section(ServerSettings).workers > 1:
            origin = self.raw.origin("server", "workers")
            problem = "must be 1 with SQLite, whose file has one server"
            yield Finding(origin, "server", "workers", problem)
        for module in self.modules:
            if module.check is not None:
                yield from module.check(self)

    def remarks(self) -> Iterator[Finding]:
        """What the modules find where no start needs it; unset is no mistake there."""
        for module in self.modules:
            if module.inspect is not None:
                yield from module.inspect(self)


def load_settings(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[Keys, str] | None = None,
    *,
    thorough: bool = False,
) -> Settings:
    """Read, check and return the configuration; `thorough` also what no start needs.

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
    findings += settings.findings()
    if thorough:
        findings += (found for found in settings.remarks() if not found.is_unset)
    if findings:
        raise ConfigurationRefused(dict.fromkeys(findings))
    return settings


def enabled_modules(raw: RawSettings) -> tuple[Module, ...]:
    """The modules that `[modules]` names. Raises StartRefused when one is broken."""
    section, _ = read_table(raw, ("modules",), ModulesSettings)
    return load_modules((section or ModulesSettings()).names)


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
            origin, hint = raw.origin(name), nearest(name, known)
            if origin.startswith("environment ") and "_" in name:
                hint = "two underscores stand between a table and its key"
            yield Finding(origin, name, "", "there is no such table", hint)


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
    raw = settings.raw
    for name, section in settings.sections.items():
        if not isinstance(section, NamedTables):
            for key in type(section).model_fields:
                origin = raw.set_by(name, key) or "default"
                yield f"{name}.{key}", _shown(getattr(section, key)), origin
            continue
        in_use = section.in_use(settings)
        for table, given in section.root.items():
            if (read := in_use.get(table)) is None:
                yield from _describe_unread(raw, (name, table), given)
            else:
                yield from _describe_table(raw, (name, table), given, read)


def _describe_unread(
    raw: RawSettings, path: Keys, given: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """A table that nobody uses: what looks like a secret is taken for one."""
    for keys, value in leaves(given, path):
        is_secret = _SUSPECT.search(".".join(keys[2:])) or "@" in str(value)
        yield ".".join(keys), _shown(value, masked=bool(is_secret)), raw.origin(*keys)


def _describe_table(
    raw: RawSettings, path: Keys, given: Mapping[str, Any], read: BaseModel
) -> Iterator[tuple[str, str, str]]:
    """A table as its owner reads it, who says what is a secret; references are kept."""
    for key, info in type(read).model_fields.items():
        is_secret = holds_secrets(info.annotation)
        if key not in given:
            origin = raw.set_by(*path, key) or "default"
            yield ".".join((*path, key)), _shown(getattr(read, key)), origin
            continue
        for keys, value in leaves({key: given[key]}, path):
            looks_so = _SECRETIVE.search(".".join(keys[2:])) or "@" in _host(value)
            shown = _shown(value, masked=is_secret or bool(looks_so))
            yield ".".join(keys), shown, raw.origin(*keys)


def _host(value: Any) -> str:
    """The part of an address that may hold a password; nothing of anything else."""
    return str(value).partition("://")[2].partition("/")[0]


def _shown(value: Any, *, masked: bool = False) -> str:
    if masked and not REFERENCE.fullmatch(str(value)):
        return _MASK
    if isinstance(value, SecretStr):
        return str(value)
    if value is None:
        return "(not set)"
    return json.dumps(value, ensure_ascii=False, default=str)
