"""[questions] of the configuration file."""

from pydantic import Field

from core.tables import Section


class QuestionSettings(Section):
    """[questions] of the configuration file."""

    history_size: int = Field(3, gt=0, le=100)
    """How many questions GET /questions/me shows."""
    longest_question_chars: int = Field(4_000, gt=0, le=65_536)
    """A longer question is refused."""
    longest_question_bytes: int = Field(16_000, gt=0, le=262_144)
    """The same in UTF-8."""
    stream_commit_seconds: float = Field(10, ge=0, le=3600)
    """How long a stream's status is held back for the first delta or failure."""
    stream_silence_seconds: float = Field(15, gt=0, le=3600)
    """After how much silence a stream sends a comment."""
    keep_days: int = Field(0, ge=0, le=36_500)
    """Older questions are removed; 0 is never."""
    keep_newest: bool = True
    """But never those that GET /questions/me shows."""
    per_minute: int = Field(0, ge=0, le=1_000_000)
    """How many questions somebody may ask within a minute; 0 is no limit, here and
    below."""
    in_flight: int = Field(0, ge=0, le=1_000_000)
    """How many questions of somebody may wait for their answers at a time."""
    per_day: int = Field(0, ge=0, le=1_000_000_000)
    """How many questions somebody may ask on a day, which begins at midnight in UTC."""
    tokens_per_day: int = Field(0, ge=0, le=1_000_000_000_000)
    """After how many tokens, of questions and answers, somebody may ask no more that
    day."""
    service_per_day: int = Field(0, ge=0, le=1_000_000_000_000)
    """How many questions all together may ask on a day."""
    # The largest number that the headers of a 429 can have (RFC 9651, section 3.3.1).
    service_tokens_per_day: int = Field(0, ge=0, le=999_999_999_999_999)
    """After how many tokens nobody may ask any more that day."""

    @property
    def has_budget(self) -> bool:
        """Whether there is a limit for all together."""
        return bool(self.service_per_day or self.service_tokens_per_day)

    @property
    def has_limits(self) -> bool:
        """Whether there is any limit."""
        own = (self.per_minute, self.in_flight, self.per_day, self.tokens_per_day)
        return any(own) or self.has_budget
