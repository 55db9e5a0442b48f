"""What can go wrong, in the words of the domain. How HTTP says it is `problems.py`.

A module subclasses one of the kinds below. The class name becomes the code that
programs read (`QuestionNotFound` -> `question_not_found`) and the first line of its
docstring the title that people read. No message may ever repeat what a caller sent.
"""

import re
from dataclasses import dataclass
from typing import Any, ClassVar


class DomainError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"
    title: ClassVar[str] = "Something went wrong."
    retry_after_seconds: int | None = None
    is_replayed: bool = False
    """It is what came of an earlier request that was sent once more."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "code" not in vars(cls):
            cls.code = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        cls.title = (cls.__doc__ or cls.__name__).strip().splitlines()[0]

    def __init__(
        self,
        detail: str = "",
        *,
        retry_after_seconds: int | None = None,
        **members: Any,
    ) -> None:
        """`detail` explains this occurrence; `members` extend the problem document."""
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.members = members
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds


# The kinds: every error of the application is one of these.


class Malformed(DomainError):
    """The request cannot be understood."""


class Unauthenticated(DomainError):
    """Who is calling is not known."""


class Forbidden(DomainError):
    """This is not allowed to you."""


class NotFound(DomainError):
    """There is nothing here."""


class NotAllowed(DomainError):
    """Method not allowed."""

    code = "method_not_allowed"

    def __init__(self, *allowed: str) -> None:
        """`allowed` are the methods that the resource supports."""
        super().__init__()
        self.allowed = sorted(allowed)


class TooSlow(DomainError):
    """The request took too long to arrive."""

    code = "request_timeout"


class Conflict(DomainError):
    """This contradicts what is already so."""


class Gone(DomainError):
    """This was here and is no more."""


class TooLarge(DomainError):
    """The request is too large."""


class UnsupportedMedia(DomainError):
    """The body is not of a type that is accepted here."""

    code = "unsupported_media_type"


@dataclass(frozen=True)
class RateLimit:
    """What is left of a limit; without a window it is of what goes on at a time."""

    name: str
    most: int
    unit: str
    remaining: int
    window_seconds: int | None = None
    resets_in_seconds: int | None = None


class TooMany(DomainError):
    """There were too many of these from you."""

    tells_limits: ClassVar[bool] = False
    """Whether it can say which limits there are, and what is left of them."""
    limits: tuple[RateLimit, ...] = ()
    """All that hold for whoever asked, when that is worth telling."""


class HeadersTooLarge(DomainError):
    """The request's headers are too large."""


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field; `loc` is its path, as in `("body", "username")`."""

    loc: tuple[str | int, ...]
    code: str
    message: str


class Invalid(DomainError):
    """The request is well formed, but some of it is not valid."""

    code = "validation_failed"

    def __init__(self, *errors: FieldError, detail: str = "", **members: Any) -> None:
        super().__init__(detail, **members)
        self.errors = errors


class Internal(DomainError):
    """Something went wrong on our side."""

    code = "internal_error"


class UpstreamFailed(DomainError):
    """A service that this one depends on failed."""


class UpstreamTimedOut(DomainError):
    """A service that this one depends on took too long."""


class Unavailable(DomainError):
    """The service cannot do this at the moment."""

    retry_after_seconds = 5


class ClientGone(Exception):
    """Whoever asked has hung up; nobody is left to answer."""

    code = "client_gone"


class BrokenOff(Exception):
    """A response that has begun cannot be finished; why is its cause."""


class StartRefused(Exception):
    """The application cannot start; the message is one line for its operator."""
