"""Finding provider plugins, and turning the configuration into a plan.

Only what the plan reaches is loaded, checked and opened: third-party code runs when the
configuration names it, and a provider nobody uses does not need its key.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeGuard

import pluggy

from core.errors import StartRefused
from core.layers import Finding, nearest
from core.module import describe_origin, load_entry_point
from core.settings import ServerSettings, Settings
from core.tables import read_table
from providers.hooks import GROUP, PROJECT, Hooks
from providers.public import ProviderOptions, ProviderType
from providers.settings import AUTO, LlmSettings, ProviderTables

_LONGEST_NAME = 100  # the name is stored with every answer
_OURS = "vopros"


@dataclass(frozen=True)
class Configured:
    """One `[providers.NAME]` table, checked against its plugin."""

    name: str
    type: ProviderType
    options: ProviderOptions
    origin: str
    """The plugin that brings its type, with its distribution and version."""

    @property
    def demonstrates(self) -> str | None:
        """What to call it if it is only a demonstration."""
        return self.type.demonstrates(self.options)


@dataclass
class Plan:
    """Who may answer. With `is_auto` the first that opens is taken, else all are."""

    is_auto: bool
    candidates: list[Configured] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)
    """Why `auto` will not try some: one line each."""
    fallback: list[Configured] = field(default_factory=list)


def make_plan(settings: Settings) -> tuple[Plan, list[Finding]]:
    """Read what `[llm]` reaches; the findings refuse the start."""
    llm = settings.section(LlmSettings)
    plan = Plan(is_auto=llm.provider == AUTO)
    findings: list[Finding] = []
    for name in llm.auto if plan.is_auto else (llm.provider,):
        configured, wrong = _reach(
            settings, name, "auto" if plan.is_auto else "provider"
        )
        if configured is None and plan.is_auto and all(f.is_unset for f in wrong):
            plan.passed_over += [f"{name}: {finding.problem}" for finding in wrong]
        elif plan.is_auto and configured and (why := _not_here(settings, configured)):
            plan.passed_over.append(f"{name}: {why}")
        else:
            findings += wrong
            plan.candidates += [configured] if configured else []
    findings += _named_twice(settings, llm)
    for name in dict.fromkeys(llm.fallback):
        configured, wrong = _reach(settings, name, "fallback")
        findings += wrong
        plan.fallback += [configured] if configured else []
    findings += _too_many_processes(settings, [*plan.candidates, *plan.fallback])
    if plan.is_auto and not plan.candidates and not findings and _is_certain(settings):
        origin = settings.raw.origin("llm", "provider")
        problem = f"auto found nothing usable: {'; '.join(plan.passed_over)}"
        findings.append(Finding(origin, "llm", "provider", problem))
    return plan, findings


def _named_twice(settings: Settings, llm: LlmSettings) -> Iterator[Finding]:
    """It would have its places, its tries and its breaker twice."""
    named = [llm.provider, *llm.fallback]  # "auto" is the name of no table
    if len(set(named)) < len(named):
        origin = settings.raw.origin("llm", "fallback")
        problem = "this names a provider that is asked already"
        yield Finding(origin, "llm", "fallback", problem)


def _is_certain(settings: Settings) -> bool:
    """Whether all that `auto` depends on is known: else its choice says nothing."""
    asked = [("llm", key) for key in ("provider", AUTO, "allow_demo")]
    return all(settings.is_known(*path) for path in [*asked, ("providers",)])


def _not_here(settings: Settings, configured: Configured) -> str | None:
    """Why `auto` must not settle on it on this server; None when it may."""
    may_demonstrate = settings.is_embedded or settings.section(LlmSettings).allow_demo
    if configured.demonstrates is not None and not may_demonstrate:
        return "a demonstration, which llm.allow_demo would allow"
    if configured.type.one_process and settings.section(ServerSettings).workers > 1:
        return "for one process, and server.workers asks for more"
    return None


def _too_many_processes(
    settings: Settings, reached: Iterable[Configured]
) -> Iterator[Finding]:
    if settings.section(ServerSettings).workers == 1:
        return
    origin = settings.raw.origin("server", "workers")
    for configured in reached:
        if configured.type.one_process:
            problem = (
                f"must be 1 with provider {configured.name!r}, which each of them"
                " would load"
            )
            yield Finding(origin, "server", "workers", problem)


def unused(settings: Settings) -> Iterator[Finding]:
    """What is wrong in any table; what only has no value yet is told as unset."""
    llm, raw = settings.section(LlmSettings), settings.raw
    if raw.set_by("llm", "auto"):
        for name in llm.auto:
            yield from (f for f in _reach(settings, name, AUTO)[1] if f.key == AUTO)
    for name in settings.section(ProviderTables).root:
        for found in configure(settings, name)[1]:
            if found.is_unset:
                problem = f"not usable yet: {found.problem}"
                yield replace(found, table=f"providers.{name}", key="", problem=problem)
            else:
                yield found


def _reach(
    settings: Settings, name: str, key: str
) -> tuple[Configured | None, list[Finding]]:
    """Read the table that `key` of `[llm]` names."""
    raw, tables = settings.raw, settings.section(ProviderTables).root
    if name not in tables:
        if not settings.is_known("providers", name):
            return None, []
        origin, hint = raw.origin("llm", key), nearest(name, tables)
        if key == AUTO:
            problem = f"there is no [providers.{name}]"
            return None, [Finding(origin, "llm", key, problem, hint, is_unset=True)]
        problem = "this names no table under [providers]"
        return None, [Finding(origin, "llm", key, problem, hint)]
    return configure(settings, name)


def configure(settings: Settings, name: str) -> tuple[Configured | None, list[Finding]]:
    """Read one table; without findings it can be opened."""
    raw, tables = settings.raw, settings.section(ProviderTables).root
    path = ("providers", name)
    if len(name) > _LONGEST_NAME or not name.isprintable():
        problem = f"must be at most {_LONGEST_NAME} printable characters"
        return None, [Finding(raw.origin(*path), "providers", "", problem)]
    if (named := tables[name].get("type")) is None:
        hint = nearest("", entry_points(group=GROUP).names)
        where, problem = raw.origin(*path), "this key is needed"
        return None, [Finding(where, ".".join(path), "type", problem, hint)]
    try:
        plugin, kind = type_named(str(named))
    except StartRefused as exc:
        where = raw.origin(*path, "type")
        return None, [Finding(where, ".".join(path), "type", str(exc))]
    options, findings = read_table(raw, path, kind.options)
    if options is None:
        return None, findings
    return Configured(name, kind, options, describe_origin(plugin)), []


def option_kinds(named: Iterable[Any]) -> dict[str, type[ProviderOptions]]:
    """What tables are read as by their type: ours, and those `named` that work."""
    ours = {
        found.name
        for found in entry_points(group=GROUP)
        if found.dist is not None and found.dist.name == _OURS
    }
    kinds: dict[str, type[ProviderOptions]] = {}
    for name in dict.fromkeys([*sorted(ours), *map(str, named)]):
        with suppress(StartRefused):
            kinds[name] = type_named(name)[1].options
    return kinds


def type_named(name: str) -> tuple[EntryPoint, ProviderType]:
    """Find and load one type. Raises StartRefused when no plugin or two bring it."""
    installed = entry_points(group=GROUP)
    found = list(installed.select(name=name))
    if not found:
        hint = nearest(name, installed.names)
        raise StartRefused(f"there is no such type of provider ({hint})")
    if len(found) > 1:
        origins = " and ".join(describe_origin(entry) for entry in found)
        raise StartRefused(f"two packages bring the same provider: {origins}")
    return found[0], load_type(found[0])


def load_type(entry: EntryPoint) -> ProviderType:
    """Load one plugin, alone. Raises StartRefused, naming its distribution."""
    origin = describe_origin(entry)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    try:
        manager.register(load_entry_point(entry), name=entry.name)
        # Without this a misspelt hook is silently no hook at all.
        manager.check_pending()
        found = manager.hook.vopros_provider()
    except pluggy.PluginValidationError:
        raise StartRefused(
            f"{origin} does not implement the hook as specified"
        ) from None
    except StartRefused:
        raise
    except (Exception, SystemExit) as exc:
        raise StartRefused(f"{origin} failed: {type(exc).__name__}") from exc
    if len(found) != 1 or not _is_complete(found[0]):
        raise StartRefused(f"{origin} does not return one ProviderType")
    if found[0].name != entry.name:
        raise StartRefused(f"{origin} returns a type of another name")
    return found[0]


def _is_complete(found: Any) -> TypeGuard[ProviderType]:
    """Whether a stranger's return value can be relied upon."""
    if not isinstance(found, ProviderType):
        return False
    options: Any = found.options
    has_options = isinstance(options, type) and issubclass(options, ProviderOptions)
    return has_options and callable(found.open)
