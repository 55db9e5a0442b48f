"""Keys that sign and verify, and how they are changed (J10, J15, J18, F39)."""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import SecretStr

from core.errors import StartRefused
from core.testing import Running, running
from modules.auth.settings import AuthSettings, SigningKey
from modules.auth.tokens import AccessTokens
from tests.conftest import Databases, served
from tests.support.api import Account, Api, assert_problem
from tests.support.config import SECRET, write_config
from tests.support.tokens import HEADER, KID, claims_of, header_of, sign

SHORT_FORM = f'secret = "{SECRET}"'


def secret_of(kid: str) -> str:
    return hashlib.sha256(kid.encode()).hexdigest()


def keys_toml(*kids: str) -> str:
    keys = [f'{{ kid = "{kid}", secret = "{secret_of(kid)}" }}' for kid in kids]
    return f"signing_keys = [{', '.join(keys)}]"


class Replicas:
    """Services on one database, one after the other, and who signed in at them."""

    def __init__(self, folder: Path, url: str) -> None:
        self._file = folder / "app.toml"
        self._url = url

    @asynccontextmanager
    async def started(self, *auth: str) -> AsyncIterator[Api]:
        write_config(self._file, self._url)
        text = self._file.read_text().replace(SHORT_FORM, "\n".join(auth))
        self._file.write_text(text)
        async with served(self._file) as (_, api):
            yield api


@pytest.fixture
async def replicas(
    databases: Databases, database_kind: str, tmp_path: Path
) -> Replicas:
    return Replicas(tmp_path, await databases.migrated(database_kind))


async def is_known(api: Api, who: Account) -> bool:
    answer = await api.get("/users/me", who)
    if answer.status_code != 200:
        assert_problem(answer, 401, "invalid_token")
    return bool(answer.status_code == 200)


@pytest.mark.slow
async def test_J15_keys_are_rotated_and_nobody_is_logged_out(
    replicas: Replicas,
) -> None:
    """Each step is rolled out: replicas of the step before still serve meanwhile."""
    added, promoted = ("old", "new"), ("new", "old")
    rollout = [("old",), added, ("old",), added, promoted, added, promoted]
    signed_in: list[Account] = []
    for kids in rollout:
        async with replicas.started(keys_toml(*kids)) as api:
            signed_in.append(await api.account())
            assert header_of(signed_in[-1])["kid"] == kids[0]
            for who in signed_in:
                assert await is_known(api, who)
    # As long as an access token lasts after the last replica of the step before.
    async with replicas.started(keys_toml("new")) as api:
        for who in signed_in:
            assert await is_known(api, who) == (header_of(who)["kid"] == "new")


@pytest.mark.slow
async def test_J15_who_moves_from_the_short_form_to_the_list_logs_nobody_out(
    replicas: Replicas,
) -> None:
    async with replicas.started(SHORT_FORM) as api:
        ada = await api.account()
        assert header_of(ada)["kid"] == KID
    async with replicas.started(SHORT_FORM, keys_toml("new")) as api:
        assert await is_known(api, ada)
        again = await api.signed_in(ada.id, ada.username)
        assert header_of(again)["kid"] == "new"
    async with replicas.started(SHORT_FORM) as api:
        assert not await is_known(api, again)
    async with replicas.started(keys_toml("new")) as api:
        assert not await is_known(api, ada)
        assert await is_known(api, again)


@pytest.mark.slow
async def test_J15_the_short_form_s_key_can_be_listed_under_its_own_name(
    replicas: Replicas,
) -> None:
    listed = f'signing_keys = [{{ kid = "{KID}", {SHORT_FORM} }}, {{ kid = "new", '
    listed += f'secret = "{secret_of("new")}" }}]'
    signed_in = []
    for step in (SHORT_FORM, listed, SHORT_FORM, listed):
        async with replicas.started(step) as api:
            signed_in.append(await api.account())
            for who in signed_in:
                assert await is_known(api, who)


@pytest.fixture(scope="module")
async def two_keys(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Running, Api, Account]]:
    file = tmp_path_factory.mktemp("keys") / "app.toml"
    url = await databases.migrated("sqlite")
    write_config(file, url, auth=keys_toml("first", "second"))
    async with served(file) as (service, api):
        yield service, api, await api.account()


@pytest.mark.parametrize(
    ("kid", "signed_with", "is_valid"),
    [
        ("first", "first", True),
        ("second", "second", True),
        ("first", "second", False),
        ("second", "first", False),
        ("third", "first", False),
        ("third", "third", False),
        ("", "first", False),
        ("FIRST", "first", False),
        ("first ", "first", False),
        ("../first", "first", False),
        (["first"], "first", False),
        ({"first": 1}, "first", False),
        (0, "first", False),
        (None, "first", False),
    ],
)
async def test_J10_a_kid_names_the_one_key_that_must_have_signed(
    two_keys: tuple[Running, Api, Account],
    kid: object,
    signed_with: str,
    is_valid: bool,
) -> None:
    _, api, ada = two_keys
    token = sign(claims_of(ada), HEADER | {"kid": kid}, secret=secret_of(signed_with))
    assert await is_known(api, Account(ada.id, ada.username, token)) is is_valid


async def test_J10_the_short_form_beside_the_list_verifies_under_its_own_name(
    two_keys: tuple[Running, Api, Account],
) -> None:
    _, api, ada = two_keys
    for kid, is_valid in ((KID, True), ("first", False)):
        token = sign(claims_of(ada), HEADER | {"kid": kid})
        assert await is_known(api, Account(ada.id, ada.username, token)) is is_valid


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize(
    "secret", ["", "short", "x" * 31, "x" * 64, "changethis" * 5, "your-secret-key" * 3]
)
async def test_J18_a_weak_secret_in_the_list_refuses_the_start(
    databases: Databases, tmp_path: Path, secret: str, n: int
) -> None:
    file = write_config(tmp_path / "app.toml", await databases.migrated("sqlite"))
    keys = keys_toml("first", "second")
    keys = keys.replace(secret_of(("first", "second")[n]), secret)
    file.write_text(file.read_text().replace(SHORT_FORM, keys))
    with pytest.raises(StartRefused) as refused:
        async with running(file):
            pass
    (line,) = str(refused.value).splitlines()
    assert f"[auth] signing_keys[{n}].secret: " in line
    assert len(secret) < 31 or secret not in line


async def test_with_keys_of_its_own_the_embedded_server_makes_none(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    made = Path(url.partition(":///")[2]).with_name("signing.secret")
    replicas = Replicas(tmp_path, url)
    async with replicas.started(keys_toml("mine")) as api:
        await api.account()
    assert not made.exists()
    async with replicas.started("") as api:
        await api.account()
    assert made.exists()


async def test_a_server_that_is_not_embedded_needs_no_secret_beside_its_keys(
    databases: Databases, tmp_path: Path
) -> None:
    replicas = Replicas(tmp_path, await databases.migrated("postgresql"))
    async with replicas.started(keys_toml("mine")) as api:
        assert await is_known(api, await api.account())
    with pytest.raises(StartRefused, match="a signing secret is needed"):
        async with replicas.started("signing_keys = []"):
            pass


async def test_keys_come_from_the_environment_as_json(
    databases: Databases, tmp_path: Path
) -> None:
    file = write_config(tmp_path / "app.toml", await databases.migrated("sqlite"))
    (kept := tmp_path / "kept").write_text(f"{secret_of('second')}\n")
    keys = [
        {"kid": "first", "secret": "${FIRST_KEY}"},
        {"kid": "second", "secret_file": str(kept)},
    ]
    environ = {"VOPROS_AUTH__SIGNING_KEYS": json.dumps(keys)}
    environ["FIRST_KEY"] = secret_of("first")
    async with served(file, environ) as (_, api):
        ada = await api.account()
        assert header_of(ada)["kid"] == "first"
        for kid in ("first", "second"):
            header = HEADER | {"kid": kid}
            token = sign(claims_of(ada), header, secret=secret_of(kid))
            assert await is_known(api, Account(ada.id, ada.username, token))


# The clocks of two replicas.


@pytest.mark.parametrize(
    ("off_by_seconds", "is_valid"),
    [(10, True), (5, True), (0, True), (-10, True), (12, False), (60, False)],
)
async def test_F39_a_login_at_a_replica_whose_clock_is_off_holds_here(
    two_keys: tuple[Running, Api, Account], off_by_seconds: int, is_valid: bool
) -> None:
    """So much is its clock ahead of ours; behind, the token only ends sooner."""
    ada = _signed_in_elsewhere(two_keys, timedelta(seconds=off_by_seconds))
    assert await is_known(two_keys[1], ada) is is_valid


@pytest.mark.parametrize(
    ("behind_seconds", "is_valid"), [(5, True), (12, False), (60, False)]
)
async def test_F39_a_token_lasts_its_time_though_the_clock_here_is_ahead(
    two_keys: tuple[Running, Api, Account], behind_seconds: int, is_valid: bool
) -> None:
    """It would end just now by the clock that it was issued by."""
    ago = timedelta(seconds=900 + behind_seconds)
    ada = _signed_in_elsewhere(two_keys, -ago)
    assert await is_known(two_keys[1], ada) is is_valid


def _signed_in_elsewhere(
    here: tuple[Running, Api, Account], off_by: timedelta
) -> Account:
    """With a token that the same session got from a replica with another clock."""
    service, _, ada = here
    key = SigningKey(kid="first", secret=SecretStr(secret_of("first")))
    elsewhere = AccessTokens(service.settings.section(AuthSettings), [key])
    session_id = UUID(claims_of(ada)["sid"])
    token = elsewhere.issue(ada.id, session_id, datetime.now(UTC) + off_by)
    return Account(ada.id, ada.username, token)
