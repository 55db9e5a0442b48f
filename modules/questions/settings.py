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
