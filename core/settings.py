"""The checked configuration: the kernel's own sections, and everybody else's.

Every table belongs to whoever reads it: the kernel's are below, a module brings its
own. `layers` reads them all, `tables` checks each.
"""

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, SecretStr, field_validator

from core.errors import StartRefused
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
    import_part,
    in_tree_names,
    installed_names,
    is_ours,
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
    salvage,
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
_ORIGIN = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?")
_DEFAULT_PORTS = (("http", ":80"), ("https", ":443"))
_WEB_ADDRESS = r"^(https?://[^\s/?#]+(/[^\s?#]*[^\s?#/])?)?$"
_HOST_NAME = re.compile(r"[\w-]+(\.[\w-]+)*\.?")
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
    """Addresses and networks whose X-Forwarded-For is believed."""
    cors_origins: Words = ()
    """Origins, as https://app.example, whose pages may call the API from a browser."""
    longest_body_bytes: int = Field(65_536, gt=0)
    """A longer request body is refused with 413."""
    longest_headers_bytes: int = Field(32_768, gt=0)
    """Longer request headers are refused with 431."""
    body_seconds: float = Field(30, gt=0)
    """How long a request body may take to arrive."""
    shutdown_seconds: int = Field(25, ge=0)
    """How long what is under way may go on once the server is told to stop."""

    @field_validator("host")
    @classmethod
    def _check_host(cls, host: str) -> str:
        if not _HOST_NAME.fullmatch(host) and not _is_address(host):
            raise ValueError("must be an address or the name of a host")
        return host

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        # Browsers send exactly this: small letters, and no port that is the default.
        for origin in origins:
            found = _ORIGIN.fullmatch(origin)
            if not found or (found[1], found[3]) in _DEFAULT_PORTS:
                raise ValueError(
                    "must be origins as a browser sends them: https://app.example or"
                    " http://localhost:3000, small letters, nothing behind the port"
                )
        return origins

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        # uvicorn takes anything, and believes nobody, or whoever says so first.
        if not all(map(_is_network, proxies)):
            raise ValueError(
                "must be addresses or networks (10.0.0.7, 10.0.0.0/24), not all of them"
            )
        return proxies


class OpenApiSettings(Section):
    """[openapi]: the operator's part of the API's document."""

    server_url: str = Field("", pattern=_WEB_ADDRESS)
    """The public address of the API; empty: wherever the document was read from."""
    contact_name: str = Field("The operator of this server", max_length=200)
    """Whom to ask about this server."""
    contact_url: str = Field("", pattern=_WEB_ADDRESS)
    """Where they can be asked."""
    contact_email: str = Field("", pattern=r"^([^@\s]+@[^@\s]+)?$")
    """And their address."""
    license_name: str = Field("Proprietary", max_length=200)
    """The license of the API, for its users; empty names none."""
    license_url: str = Field("", pattern=_WEB_ADDRESS)
    """Its text."""
    terms_url: str = Field("", pattern=_WEB_ADDRESS)
    """The terms of service."""

    @property
    def info(self) -> dict[str, Any]:
        """The members of OpenAPI's `info` that are set here."""
        found: dict[str, Any] = {"contact": self._named("contact_")}
        # A license without a name is not valid.
        if self.license_name:
            found["license"] = self._named("license_")
        if self.license_name and not self.license_url:
            # SPDX's form for a license that is not on its list.
            reference = re.sub(r"[^A-Za-z0-9.]+", "-", self.license_name).strip("-")
            found["license"]["identifier"] = f"LicenseRef-{reference}"
        found["termsOfService"] = self.terms_url
        return {name: value for name, value in found.items() if value}

    def _named(self, prefix: str) -> dict[str, str]:
        return {
            name.removeprefix(prefix): value
            for name, value in self.model_dump().items()
            if name.startswith(prefix) and value
        }


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
    "openapi": OpenApiSettings,
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
    unread: frozenset[Keys] = frozenset()
    """What is found wrong already; only while a check looks for what else is."""

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

    @property
    def migrates_on_start(self) -> bool:
        """Whether a server brings the database up to date before it serves."""
        configured = self.section(DatabaseSettings).migrate_on_start
        return self.is_sqlite if configured is None else configured

    def is_known(self, *path: str) -> bool:
        """Whether neither the value at `path` nor anything below was found wrong."""
        return not any(
            path[: len(keys)] == keys or keys[: len(path)] == path
            for keys in self.unread
        )

    def findings(self, opening: Collection[Module]) -> Iterator[Finding]:
        """What no section can say alone, and what the modules to open find wrong."""
        if self.is_known("database", "url"):
            yield from self._database_findings()
        for module in self._readable():
            if module.check is not None and module in opening:
                yield from module.check(self)

    def remarks(self) -> Iterator[Finding]:
        """What the modules find where no start needs it; unset is no mistake there."""
        for module in self._readable():
            if module.inspect is not None:
                yield from module.inspect(self)

    def unguarded_findings(self) -> Iterator[Finding]:
        """Routes for known callers, where no enabled module can tell who is calling.

        A module from outside of the tree may be able to without saying so.
        """
        if any(m.authenticates or not is_ours(m.name) for m in self.modules):
            return
        from core.security import first_protected

        for module in self.modules:
            if module.router is not None:
                router = import_part(module, module.router, "router").router
                if path := first_protected(router.routes):
                    origin = self.raw.origin("modules", "enabled")
                    yield Finding(origin, "modules", "enabled", unguarded(path))
                    return

    def _database_findings(self) -> Iterator[Finding]:
        from core.db import database_url

        try:
            database_url(self.section(DatabaseSettings))
        except StartRefused as exc:
            origin = self.raw.origin("database", "url")
            problem = str(exc).removeprefix("[database] url: ")
            yield Finding(origin, "database", "url", problem)
        if self.is_sqlite and self.section(ServerSettings).workers > 1:
            origin = self.raw.origin("server", "workers")
            problem = "must be 1 with SQLite, whose file has one server"
            yield Finding(origin, "server", "workers", problem)

    def _readable(self) -> Iterator[Module]:
        """The modules whose sections are there, and those of what they require."""
        names: set[str] = set()
        for module in self.modules:
            is_whole = module.sections.keys() <= self.sections.keys()
            if is_whole and names.issuperset(module.requires):
                names.add(module.name)
                yield module


def load_settings(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[Keys, str] | None = None,
    *,
    thorough: bool = False,
    opening: Collection[str] | None = None,
) -> Settings:
    """Read, check and return the configuration; `thorough` also what no start needs.

    Every table is read, but what is behind them is checked only for the modules
    `opening` with what they require; not given, all. Raises ConfigurationRefused with
    every finding at once, or StartRefused.
    """
    raw = read_layers(file, os.environ if environ is None else environ, overrides)
    reader = _Reader(raw)
    reader.findings += raw.findings
    reader.read(CORE_SECTIONS)
    modules = reader.load_modules()
    for module in modules:
        reader.read(module.sections)
    if reader.knows_modules:
        reader.findings += _unknown_tables(raw, modules)
    unread = frozenset(reader.unread)
    settings = Settings(raw, reader.sections, modules, unread)
    found = [*settings.findings(modules if opening is None else load_modules(opening))]
    if thorough and reader.knows_modules:
        # A server that starts refuses the same, knowing what its modules have opened.
        found += settings.unguarded_findings()
    if thorough:
        found += (remark for remark in settings.remarks() if not remark.is_unset)
    # Of what is not known nothing more can be said.
    found = [f for f in found if settings.is_known(*f.path)]
    if findings := dict.fromkeys([*reader.findings, *found]):
        raise ConfigurationRefused(findings)
    return settings


class _Reader:
    """Reads sections; what is wrong in one does not hide what is wrong in others."""

    def __init__(self, raw: RawSettings) -> None:
        self._raw = raw
        self.sections: dict[str, BaseModel] = {}
        self.findings: list[Finding] = []
        self.unread: set[Keys] = set()
        self.knows_modules = True
        """Whether the tables of all that should be enabled are known."""

    def read(self, kinds: Mapping[str, type[BaseModel]]) -> None:
        for name, kind in kinds.items():
            section, findings = read_table(self._raw, (name,), kind)
            if findings:
                self.findings += findings
                section, unread = salvage(self._raw, name, kind, findings)
                self.unread |= unread
            if section is not None:
                self.sections[name] = section

    def load_modules(self) -> tuple[Module, ...]:
        """Those that are enabled, as far as there are such."""
        enabled = self.sections["modules"]
        assert isinstance(enabled, ModulesSettings)
        unknown = list(_unknown_modules(self._raw, enabled))
        self.findings += unknown
        if unknown or any(keys[0] == "modules" for keys in self.unread):
            self.knows_modules = False
        known = installed_names()
        return load_modules(name for name in enabled.names if name in known)


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


def unguarded(path: str) -> str:
    """Return the refusal of a route whose callers no module can authenticate."""
    return (
        f"{path} is for known callers only, but no enabled module can authenticate them"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    return _is_address(host) and ip_address(host).is_loopback


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_network(text: str) -> bool:
    """Whether it is an address, or a network that is not the whole world."""
    try:
        return ip_network(text).prefixlen > 0
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
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    """What JSON has no word for: a table in a list; a secret, which masks itself."""
    return value.model_dump() if isinstance(value, BaseModel) else str(value)
