"""Signing up, signing in, and passwords."""

import logging

from core.client import Client
from core.db import Database
from core.errors import Conflict, FieldError, Forbidden, Invalid, Malformed
from core.security import Principal
from modules.auth import repository
from modules.auth.passwords import Passwords
from modules.auth.sessions import Grant, InvalidGrant, Sessions
from modules.auth.throttle import Guess, Throttle, network_hash
from modules.users.public import NewUser, User, Users, username_key

log = logging.getLogger(__name__)

# No user has this id: of a name that nobody has, the same statements are made.
_NOBODY = 0


class UnsupportedGrantType(Malformed):
    """The grant type must be `password`."""

    def __init__(self) -> None:
        super().__init__(error="unsupported_grant_type")


class WrongPassword(Forbidden):
    """The current password is wrong."""


class PasswordChanged(Conflict):
    """The password was changed by somebody else at this moment."""


class Auth:
    """Accounts with passwords."""

    def __init__(
        self,
        db: Database,
        users: Users,
        passwords: Passwords,
        sessions: Sessions,
        throttle: Throttle,
    ) -> None:
        self._db = db
        self._users = users
        self._passwords = passwords
        self._throttle = throttle
        self._sessions = sessions

    async def sign_up(self, username: str, password: str, client: Client) -> User:
        """Make an account for whoever asks.

        Raises as `register`, TooManyAttempts, and Busy when too many hash already.
        """
        self._passwords.check(password, username)
        async with self._passwords.turn(), self._throttle.registering(client):
            return await self.register(username, password)

    async def register(self, username: str, password: str) -> User:
        """Make an account. Raises Invalid for the password, UsernameTaken."""
        self._passwords.check(password, username)
        password_hash = await self._passwords.hash(password)
        async with self._db.transaction() as session:
            user = await self._users.add(session, NewUser(username))
            await repository.add_credential(session, user.id, password_hash)
        fields = {"user_id": user.id, "role": user.role.value, "by": "self"}
        log.info("security.account_created", extra=fields)
        return user

    async def log_in(self, username: str, password: str, client: Client) -> Grant:
        """Open a session.

        Raises InvalidGrant, after the same work, for an unknown name, a wrong password
        and an account that is not active; TooManyAttempts before any work; Busy.
        """
        async with self._passwords.turn():
            async with self._db.reading() as session:
                user = await self._users.find_by_username(session, username)
            user_id = _NOBODY if user is None else user.id
            guess = await self._guess(user_id or username_key(username), client)
            async with self._throttle.guessing(guess):
                return await self._sign_in(user_id, password, client, guess)

    async def _guess(self, account: str | int, client: Client) -> Guess:
        """Reserve a guess for a user's id, or for a name that nobody has."""
        user_id = account if isinstance(account, int) else _NOBODY
        async with self._db.reading() as session:
            place = network_hash(client)
            is_known = await repository.knows_network(session, user_id, place)
        return await self._throttle.guess(account, client, is_known_there=is_known)

    async def _sign_in(
        self, user_id: int, password: str, client: Client, guess: Guess
    ) -> Grant:
        async with self._db.reading() as session:
            old = await repository.password_hash(session, user_id)
        verified = await self._passwords.verify(password, old, user_id=user_id)
        if not verified.matches:
            raise _refused(user_id)
        assert old is not None
        new = verified.replacement
        async with self._db.transaction() as session:
            is_overtaken = new is not None and (
                not await repository.upgrade_password_hash(
                    session, user_id, old=old, new=new
                )
            )
            # Overtaken, it opens nothing: this hash is not in place.
            grant = await self._sessions.open(
                session, user_id, client, verified=new or old
            )
            if grant is not None:
                await self._throttle.succeeded(session, guess)
        if is_overtaken:
            # Another login did it first, or the password was changed: look again.
            return await self._sign_in(user_id, password, client, guess)
        if grant is None:
            raise _refused(user_id)
        log.info("security.logged_in", extra={"user_id": user_id})
        return grant

    async def change_password(
        self, who: Principal, current: str, new: str, client: Client
    ) -> None:
        """Replace the password; every other session ends with it.

        Raises WrongPassword, Invalid for the new one, PasswordChanged, TooManyAttempts
        and Busy.
        """
        self._passwords.check(new, who.username, field="new_password")
        async with self._passwords.turn():
            old = await self._verified(who.user_id, current, client)
            made = await self._another(new, old)
        async with self._db.transaction() as session:
            await repository.lock_account(session, who.user_id)
            if not await repository.replace_password_hash(
                session, who.user_id, old=old, new=made
            ):
                raise PasswordChanged
            await repository.revoke_sessions(session, who.user_id, keep=who.session_id)
        log.info("security.password_changed", extra={"user_id": who.user_id})

    async def _another(self, new: str, old: str) -> str:
        """The hash of a new password; Invalid when it is the one of the old hash."""
        if (await self._passwords.verify(new, old)).matches:
            where = ("body", "new_password")
            message = "Must differ from the current password."
            raise Invalid(FieldError(where, "same_password", message))
        return await self._passwords.hash(new)

    async def _verified(self, user_id: int, password: str, client: Client) -> str:
        """The hash of the right password. Raises WrongPassword, TooManyAttempts."""
        guess = await self._guess(user_id, client)
        async with self._throttle.guessing(guess):
            async with self._db.reading() as session:
                found = await repository.password_hash(session, user_id)
            verified = await self._passwords.verify(password, found, user_id=user_id)
        if found is None or not verified.matches:
            log.info("security.password_refused", extra={"user_id": user_id})
            raise WrongPassword
        async with self._db.transaction() as session:
            await self._throttle.succeeded(session, guess)
        return found


def _refused(user_id: int) -> InvalidGrant:
    log.info("security.login_refused", extra={"user_id": user_id or None})
    return InvalidGrant()
