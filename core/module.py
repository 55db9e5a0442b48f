"""The socket that every module plugs into, and how modules are found by name."""

import importlib
import importlib.util
import logging
import pkgutil
import traceback
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import DomainError, StartRefused

if TYPE_CHECKING:
    from pydantic import BaseModel

    from core.db import Database
    from core.layers import Finding
    from core.services import Services
    from core.settings import Settings

log = logging.getLogger(__name__)

MODULE_GROUP = "vopros.modules"
_IN_TREE = "modules"
ROOT = Path(__file__).resolve().parent.parent
# The interpreter's words, which name code. Those of others may hold a key.
_TELLING = (ImportError, SyntaxError, AttributeError, NameError)
_LOADERS = (str(ROOT / "core"), str(Path(importlib.__file__).parent), "<")


@dataclass(frozen=True)
class ModuleContext:
    """What a module is given while it is open."""

    settings: "Settings"
    database: "Database"
    services: "Services"
    clock: Callable[[], datetime]
    is_serving: bool = False
    """Not in a command, which must not do what a server does on the side."""


Record = Mapping[str, Any]
"""What pydantic can write as JSON: text, numbers, moments, UUIDs, lists, mappings."""

PersonalData = Callable[
    [ModuleContext, int], Awaitable[Record] | AsyncGenerator[Record, None]
]
"""Reads what is kept of a user: a coroutine function the one record that there is, an
async generator function any number. While it yields it must hold no connection: whoever
takes the records may be slow."""


@dataclass(frozen=True)
class Survey:
    """What asking others gave: rows of one length for people, the headings first."""

    rows: tuple[tuple[str, ...], ...]
    failures: tuple[str, ...] = ()
    """One line for each that is in use and cannot be used."""


@dataclass(frozen=True)
class Module:
    """A module as data. Dotted names are imported when needed: `--help` stays fast."""

    name: str
    """Also the name of its tables' prefix and its folder of migrations."""
    requires: tuple[str, ...] = ()
    """Modules that open before this one and come along when it is enabled."""
    router: str | None = None
    """Dotted name of a module with an APIRouter called `router`."""
    commands: str | None = None
    """Dotted name of a module with a Typer app called `commands`."""
    models: str | None = None
    """Dotted name of the module that declares its tables."""
    sections: "Mapping[str, type[BaseModel]]" = field(default_factory=dict)
    """The tables of the configuration file that this module reads."""
    check: "Callable[[Settings], Iterable[Finding]] | None" = None
    """What its sections cannot say alone; a finding refuses the start."""
    inspect: "Callable[[Settings], Iterable[Finding]] | None" = None
    """What is wrong where no start needs it: told to whoever asks."""
    survey: "Callable[[Settings], Awaitable[Survey]] | None" = None
    """Asks the services it depends on whether they are there; free of charge."""
    migrations: Path | None = None
    """Its migrations, when not in `migrations/<name>`."""
    lifespan: Callable[[ModuleContext], AbstractAsyncContextManager[None]] | None = None
    authenticates: bool = False
    """Its lifespan offers an `Authenticator`: `config check` relies on it."""
    personal_data: Mapping[str, PersonalData] = field(default_factory=dict)
    """What people get when they export their data, by its name in the file."""

    @property
    def migrations_folder(self) -> Path:
        return self.migrations or ROOT / "migrations" / self.name

    @property
    def has_tables(self) -> bool:
        return self.models is not None


def load_modules(names: Iterable[str]) -> tuple[Module, ...]:
    """Load the named modules and all that they require, in the order of opening.

    Raises StartRefused, naming what is missing, broken or circular.
    """
    loaded: dict[str, Module] = {}

    def visit(name: str, wanted_by: tuple[str, ...]) -> None:
        if name in wanted_by:
            circle = " -> ".join((*wanted_by, name))
            raise StartRefused(f"modules require each other in a circle: {circle}")
        if name in loaded:
            return
        module = load_module(name, wanted_by[-1] if wanted_by else None)
        for required in module.requires:
            visit(required, (*wanted_by, name))
        loaded[name] = module

    for name in names:
        visit(name, ())
    return tuple(loaded.values())


def load_module(name: str, wanted_by: str | None = None) -> Module:
    """Load one module: a folder of `modules/`, or else an installed entry point."""
    if name in in_tree_names():
        origin = describe_module(name)
        with refuse_failure(origin):
            module = importlib.import_module(f"{_IN_TREE}.{name}.module").MODULE
    else:
        entry = _entry_point(name, wanted_by)
        module, origin = load_entry_point(entry), describe_origin(entry)
    if not isinstance(module, Module) or module.name != name:
        raise StartRefused(f"{origin} does not provide a module called {name!r}")
    return module


def in_tree_names() -> tuple[str, ...]:
    """The names of the folders under `modules/`."""
    package = importlib.import_module(_IN_TREE)
    found = pkgutil.iter_modules(package.__path__)
    return tuple(module.name for module in found if module.ispkg)


def is_ours(name: str) -> bool:
    """Whether a module comes with this program, and from no other distribution."""
    found = entry_points(group=MODULE_GROUP, name=name)
    others = [entry for entry in found if not entry.dist or entry.dist.name != "vopros"]
    return name in in_tree_names() or not others


def installed_names() -> frozenset[str]:
    """The names of every module that could be enabled; none of them is loaded."""
    found = entry_points(group=MODULE_GROUP)
    return frozenset((*in_tree_names(), *found.names))


def _entry_point(name: str, wanted_by: str | None) -> EntryPoint:
    found = list(entry_points(group=MODULE_GROUP, name=name))
    if len(found) == 1:
        return found[0]
    if found:
        origins = ", ".join(describe_origin(entry) for entry in found)
        raise StartRefused(f"more than one package provides module {name!r}: {origins}")
    reason = f", which {wanted_by!r} requires" if wanted_by else ""
    raise StartRefused(f"there is no module {name!r}{reason}")


def load_entry_point(entry: EntryPoint) -> Any:
    """Load third-party code. Raises StartRefused, naming its distribution."""
    with refuse_failure(describe_origin(entry)):
        return entry.load()


def import_part(module: Module, dotted: str, *needed: str) -> Any:
    """Import a part of a module, which has all that is `needed` of it.

    Raises StartRefused, naming the distribution.
    """
    with refuse_failure(f"{describe_module(module.name)}: {dotted}"):
        part = importlib.import_module(dotted)
        for name in needed:
            getattr(part, name)
        return part


@contextmanager
def refuse_failure(origin: str, verb: str = "loaded") -> Iterator[None]:
    """Raise StartRefused, one line, for whatever the code of a module raises.

    The exception's message is left out where it may hold a secret; its place is not.
    """
    try:
        yield
    except (StartRefused, DomainError):
        raise
    except (Exception, SystemExit) as exc:
        trace = "".join(traceback.format_tb(exc.__traceback__))
        log.debug("module.failed", extra={"origin": origin, "traceback": trace})
        raise StartRefused(f"{origin} cannot be {verb}: {_describe(exc)}") from exc


def _describe(exc: BaseException) -> str:
    """The type of an exception, its message if it is harmless, and where it arose."""
    kind, message = type(exc).__name__, ""
    if isinstance(exc, _TELLING) and str(exc):
        first_line = str(exc).splitlines()[0]
        message = f": {''.join(c if c.isprintable() else '?' for c in first_line)}"
    frames = traceback.extract_tb(exc.__traceback__)
    outside = [frame for frame in frames if not frame.filename.startswith(_LOADERS)]
    # A SyntaxError names its place itself.
    if not outside or isinstance(exc, SyntaxError):
        return f"{kind}{message}"
    file = Path(*Path(outside[-1].filename).parts[-2:])
    return f"{kind}{message} ({file}:{outside[-1].lineno})"


def describe_origin(entry: EntryPoint) -> str:
    """Name an entry point with the distribution that brings it and its version."""
    kind = "module" if entry.group == MODULE_GROUP else "plugin"
    brought_by = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "?"
    return f"{kind} {entry.name!r} of {brought_by}"


def describe_module(name: str) -> str:
    """Name a module with the distribution that brings it and its version."""
    if name not in in_tree_names():
        for entry in entry_points(group=MODULE_GROUP, name=name):
            return describe_origin(entry)
    return f"module {name!r} of vopros {version('vopros')}"


def known_modules(enabled: Iterable[Module]) -> Iterator[Module]:
    """The enabled modules, then others in the tree with what those require."""
    known = {module.name: module for module in enabled}
    for module in load_modules(in_tree_names()):
        known.setdefault(module.name, module)
    yield from known.values()
