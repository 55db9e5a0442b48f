"""Whether strangers may make accounts for themselves."""

from core.errors import Forbidden
from modules.auth.settings import AuthSettings


class RegistrationClosed(Forbidden):
    """Only the operator makes accounts here."""


class Registration:
    """The door for newcomers; what the operator makes does not pass through it."""

    def __init__(self, settings: AuthSettings) -> None:
        self._is_open = settings.registration == "open"

    def admit(self) -> None:
        """Raises RegistrationClosed."""
        if not self._is_open:
            raise RegistrationClosed
