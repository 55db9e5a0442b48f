"""Who may be who, and with which password (R01 to R07, F28)."""

import asyncio
import json
import unicodedata
import uuid
from pathlib import Path
from typing import Any

import pytest
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from core.errors import Invalid
from core.testing import Running
from modules.auth.accounts import Accounts
from modules.auth.passwords import Passwords
from modules.auth.settings import AuthSettings
from tests.conftest import Databases, served
from tests.support.api import PASSWORD, Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.hashing import Work
from tests.support.raw import exchange, request


def new_name() -> str:
    return f"u{uuid.uuid4().hex[:12]}"


def errors_of(problem: dict[str, Any]) -> list[tuple[list[str], str]]:
    return [(error["loc"], error["code"]) for error in problem["errors"]]


@pytest.mark.parametrize("name", ["abc", "Ada.Lovelace", "x" * 31, "0x1F", "a_b-c.d"])
async def test_a_plain_name_is_taken_as_it_is_written(api: Api, name: str) -> None:
    name = f"{name[:26]}{uuid.uuid4().hex[:6]}"
    answer = await api.register(name)
    assert answer.status_code == 201
    registered = answer.json()
    assert registered.keys() == {"id", "username", "role", "created_at"}
    assert (registered["username"], registered["role"]) == (name, "user")


@pytest.mark.parametrize(
    "name",
    [
        *("admin", "Admin", "ADMIN", "Root", "system", "vopros", "me", "null"),
        *("\uff41\uff44\uff4d\uff49\uff4e", "\u1d2cdmin", "\u212aelvin", "ad\u00admin"),
    ],
)
async def test_R01_a_name_that_looks_official_is_refused(
    api: Api, work: Work, name: str
) -> None:
    problem = assert_problem(await api.register(name), 422)
    assert [error["loc"] for error in problem["errors"]] == [["body", "username"]]
    assert work.since_last_look() == (0, 0)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "\u0430dmin",
            "ada\u200b",
            "\u202eada",
            "ad\U0001f600",
            "ada ",
            " ada",
            "a b",
        ),
        *("..", "a..b", ".ada", "ada.", "-ada", "ada_", "me", "ab", "x" * 33, "12345"),
        *("ada/../bob", "ada\n", "ada;", "ada@home", "ada%00", "\u0661\u0662\u0663"),
    ],
)
async def test_R02_a_name_of_other_shape_is_refused(api: Api, name: str) -> None:
    problem = assert_problem(await api.register(name), 422)
    assert [error["loc"] for error in problem["errors"]] == [["body", "username"]]


async def test_R03_a_name_is_taken_in_any_letter_case(api: Api, ada: Account) -> None:
    for name in (ada.username, ada.username.upper(), ada.username.title()):
        problem = assert_problem(await api.register(name), 409, "username_taken")
        assert name not in json.dumps(problem)


@pytest.mark.slow
async def test_F28_of_fifty_who_want_one_name_at_once_one_gets_it(api: Api) -> None:
    name = new_name()
    wanted = [name.upper() if n % 2 else name for n in range(50)]
    answers = await asyncio.gather(*[api.register(each) for each in wanted])
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 49
    for answer in answers:
        if answer.status_code == 409:
            assert_problem(answer, 409, "username_taken")
    assert (await api.log_in(name)).status_code == 200


def of_length(length: int) -> str:
    return ("Zq7-" * 40)[:length]


@pytest.mark.parametrize("length", [8, 14, 15, 64, 128])
async def test_R04_a_password_of_8_to_128_characters_is_accepted(
    api: Api, length: int
) -> None:
    name, password = new_name(), of_length(length)
    assert (await api.register(name, password)).status_code == 201
    assert (await api.log_in(name, password)).status_code == 200
    assert (await api.log_in(name, password[:-1])).status_code == 401


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("", "too_short"),
        (of_length(7), "too_short"),
        ("e\u0301" * 4, "too_short"),
        ("\ufdfa", "too_short"),
        (of_length(129), "too_long"),
        ("\U0001f600" * 129, "too_long"),
        ("x" * 60_000, "too_long"),
    ],
)
async def test_R04_a_password_of_other_length_is_refused_before_any_work(
    api: Api, ada: Account, work: Work, password: str, code: str
) -> None:
    problem = assert_problem(await api.register(new_name(), password), 422)
    assert errors_of(problem) == [(["body", "password"], code)]
    body = {"current_password": PASSWORD, "new_password": password}
    changed = await api.http.put("/auth/password", json=body, headers=ada.auth)
    assert errors_of(assert_problem(changed, 422)) == [(["body", "new_password"], code)]
    assert work.since_last_look() == (0, 0)


async def test_R04_a_password_of_512_bytes_is_the_longest(api: Api, work: Work) -> None:
    name, password = new_name(), "\U0001f600\U0001f4a7" * 64
    assert (await api.register(name, password)).status_code == 201
    assert (await api.log_in(name, password)).status_code == 200
    assert work.since_last_look() == (1, 1)
    # Of as many bytes as are hashed: this one character becomes eighteen letters.
    for letters, status in ((15, 201), (16, 422)):
        answer = await api.register(new_name(), "\ufdfa" * letters)
        assert answer.status_code == status
    assert errors_of(answer.json()) == [(["body", "password"], "too_long")]
    assert work.since_last_look() == (1, 0)
    assert_problem(await api.log_in(name, "\ufdfa" * 128), 401, "invalid_grant")


async def test_R04_an_operator_can_demand_longer_passwords(
    databases: Databases, tmp_path: Path, work: Work
) -> None:
    url = await databases.migrated("sqlite")
    longer = "shortest_password_chars = 15"
    file = write_config(tmp_path / "app.toml", url, auth=longer)
    async with served(file) as (_, api):
        work.since_last_look()
        refused = await api.register(new_name(), of_length(14))
        found = errors_of(assert_problem(refused, 422))
        assert found == [(["body", "password"], "too_short")]
        assert work.since_last_look() == (0, 0)
        assert (await api.register(new_name(), of_length(15))).status_code == 201


async def test_R04_a_password_of_a_megabyte_is_not_even_read(api: Api) -> None:
    head = request(
        "POST",
        "/auth/register",
        "Content-Type: application/json",
        "Content-Length: 1000000",
    )
    reply = await exchange(api.url, head)
    assert (reply.status, reply.problem["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    "password", [of_length(7), of_length(129), "nul\x00nul\x00", "lone\ud800lone"]
)
async def test_R04_an_operator_s_password_has_the_same_limits(
    service: Running, work: Work, password: str
) -> None:
    with pytest.raises(Invalid):
        await service.service(Accounts).create_admin(new_name(), password)
    assert work.since_last_look() == (0, 0)


@pytest.mark.parametrize(
    "password",
    [
        *("password", "PASSWORD", "12345678", "qwertyuiop", "iloveyou", "Jennifer"),
        *("passwordpassword", "123123123123", "aaaaaaaa", "abcabcabcabc", "87654321"),
        *("abcdefgh", "vopros2026!", "VOPROS--", "{name}", "{NAME}", "{name}123!"),
        *("{name}{name}", "{name}-{name}", "{NAME}{name}123", "voprosVopros"),
        *("vopros vopros!", "vopros123vopros"),
        "\uff50\uff41\uff53\uff53\uff57\uff4f\uff52\uff44",
    ],
)
async def test_R05_a_password_that_is_easily_guessed_is_refused_with_the_reason(
    api: Api, work: Work, password: str
) -> None:
    name = new_name()
    password = password.format(name=name, NAME=name.upper())
    problem = assert_problem(await api.register(name, password), 422)
    assert errors_of(problem) == [(["body", "password"], "password_blocklisted")]
    assert problem["errors"][0]["message"].startswith("Must not be ")
    assert work.since_last_look() == (0, 0)


def test_R05_the_three_thousand_most_common_passwords_are_refused() -> None:
    passwords = Passwords(AuthSettings())
    # In the order of how often they were found in what was stolen elsewhere.
    long_enough = [word for word in FREQUENCY_LISTS["passwords"] if len(word) >= 8]
    assert len(long_enough) > 3_000
    for password in long_enough:
        with pytest.raises(Invalid):
            passwords.check(password, "ada")
    passwords.close()


@pytest.mark.parametrize(
    "password",
    [
        *(" " * 8, "        leading", "trailing        ", "\t\t\t\t\t\t\t\n"),
        *("\U0001f600" * 8, "пароль и ещё", "x" * 64, "correct horse battery staple"),
        *("%00%ff+&=;", '"quoted\\"', "\u202eabcdefg", "e\u0301" * 8),
    ],
)
async def test_R06_a_password_is_made_of_anything(api: Api, password: str) -> None:
    name = new_name()
    assert (await api.register(name, password)).status_code == 201
    assert (await api.log_in(name, password)).status_code == 200
    assert (await api.log_in(name, password.strip() + "x")).status_code == 401


async def test_R06_a_password_is_the_same_from_any_keyboard(api: Api) -> None:
    name, password = new_name(), "caf\u00e9 \ufb01nances \uff11\uff12"
    assert (await api.register(name, password)).status_code == 201
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        spelt = unicodedata.normalize(form, password)
        assert (await api.log_in(name, spelt)).status_code == 200


async def test_R06_C6_every_byte_of_a_long_password_counts(api: Api) -> None:
    name, start = new_name(), of_length(72)
    assert (await api.register(name, f"{start}A")).status_code == 201
    assert_problem(await api.log_in(name, f"{start}B"), 401, "invalid_grant")
    assert_problem(await api.log_in(name, start), 401, "invalid_grant")


async def test_R07_a_password_that_is_no_text_is_refused(
    api: Api, ada: Account, work: Work
) -> None:
    registering = b'{"username": "someone.new", "password": "pass\\ud800word"}'
    refused = await api.http.post(
        "/auth/register",
        content=registering,
        headers={"Content-Type": "application/json"},
    )
    logging_in = f"grant_type=password&username={ada.username}&password=pass%FFword"
    refused_too = await api.http.post(
        "/auth/token",
        content=logging_in,
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    nul = await api.log_in(ada.username, f"{PASSWORD}\x00")
    for answer in (refused, refused_too, nul):
        found = errors_of(assert_problem(answer, 422))
        assert found == [(["body", "password"], "invalid_text")]
    assert work.since_last_look() == (0, 0)
