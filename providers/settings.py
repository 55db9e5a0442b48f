"""[llm] and [providers.*] of the configuration file."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from core.layers import RawSettings
from core.tables import NamedTables, Section, Words

if TYPE_CHECKING:
    from core.settings import Settings

AUTO = "auto"


class LlmSettings(Section):
    """[llm]: who answers, and within which limits."""

    provider: str = AUTO
    """Switch provider: the name of a table [providers.NAME], or "auto", the first
    usable one of the list `auto`."""
    auto: Words = ("openai", "local", "echo")
    """What "auto" chooses from, in this order."""
    fallback: Words = ()
    """Tried in this order when the provider does not answer."""
    allow_demo: bool = False
    """May "auto" settle on a demonstration when the server is not the embedded one
    (SQLite on a loopback address)?"""
    deadline_seconds: float = Field(60, gt=0, le=3600)
    """The whole request: queue, retries and fallbacks included."""
    system_prompt: str = ""
    """Sent before every question; empty sends none."""
    temperature: float | None = Field(None, ge=0, le=2)
    """Not sent unless set."""
    max_tokens: int | None = Field(None, gt=0)
    """The longest answer; not sent unless set."""
    longest_answer_bytes: int = Field(262_144, gt=0, le=1_048_576)
    """A longer answer is cut off, and failed."""


class ProviderTables(NamedTables):
    """[providers.NAME]: what each one needs is known by its type."""

    def in_use(self, settings: "Settings") -> Mapping[str, BaseModel]:
        """The options of the providers of the plan."""
        # Imported here, so that the command line's help stays fast; below as well.
        from providers.registry import make_plan

        plan, _ = make_plan(settings)
        return {one.name: one.options for one in (*plan.candidates, *plan.fallback)}

    @classmethod
    def kinds(cls, raw: RawSettings) -> Mapping[str, type[BaseModel]]:
        """The options of our own types, and of those that some table names."""
        from providers.registry import option_kinds

        tables = raw.tables.get("providers")
        given = tables.values() if isinstance(tables, dict) else ()
        return option_kinds(t.get("type") for t in given if isinstance(t, dict))
