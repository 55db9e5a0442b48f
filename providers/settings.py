"""[llm] and [providers.*] of the configuration file."""

from pydantic import Field

from core.tables import NamedTables, Section, Words

AUTO = "auto"


class LlmSettings(Section):
    """[llm]: who answers, and within which limits."""

    provider: str = AUTO
    auto: Words = ("openai", "local", "echo")
    fallback: Words = ()
    allow_demo: bool = False
    deadline_seconds: float = Field(60, gt=0, le=3600)
    system_prompt: str = ""
    temperature: float | None = Field(None, ge=0, le=2)
    max_tokens: int | None = Field(None, gt=0)
    longest_answer_bytes: int = Field(262_144, gt=0, le=1_048_576)


class ProviderTables(NamedTables):
    """[providers.NAME]: what each one needs is known by its type."""
