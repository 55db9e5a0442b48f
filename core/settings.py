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
from core.tables import REFERENCE, M, NamedTables, Section, Words, read_table

_SECRETIVE = re.compile(
    r"key|secret|token(?!s)|password|authorization|header|proxy", re.IGNORECASE
)


class ServerSettings(Section):
    """[server]: where and how the API is served."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    workers: int = Field(1, ge=1, le=1_000)
    """Processes that serve; each has its own connections and its own view of things."""
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


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


class LogSettings(Section):
    """[log]: what is written to standard error."""

    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)
    ] = "INFO"
    format: Literal["text", "json"] = "text"


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
    for keys, value in leaves(tables.root, (name,)):
        # Nobody has said yet which of these are secrets: what looks like one is one.
        hidden = _SECRETIVE.search(".".join(keys[2:])) or "@" in str(value)
        shown = value
        if hidden and not REFERENCE.fullmatch(str(value)):
            shown = "**********"
        yield ".".join(keys), _shown(shown), raw.origin(*keys)


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr):
        return str(value)
    if value is None:
        return "(not set)"
    return json.dumps(value, ensure_ascii=False, default=str)
