"""Ids, page sizes, cursors and moments in paths and queries (I17 to I19)."""

import base64

import pytest

from tests.support.api import CANARY, Account, Api, assert_problem

NOBODYS = (0, -1, 2**31, 2**53, 2**63 - 1)
TOO_LARGE = (2**63, 2**64, -(2**63), 2**200, int("9" * 4_000))
ODD = (
    *("1.0", "%2B1", "1_000", "%201", "1%20", "01", "-0", "0x1", "1e3", "1%00", "1;2"),
    *("%D9%A3", "%EF%BC%91", "%C2%B2", "1%ff", "null", "true", "9" * 6_000, CANARY),
)
PATHS = ("/questions/{}", "/users/{}")


@pytest.mark.parametrize("number", NOBODYS)
async def test_I17_an_id_of_nobody_is_not_found(
    api: Api, some_admin: Account, number: int
) -> None:
    for path in PATHS:
        assert_problem(await api.get(path.format(number), some_admin), 404)


@pytest.mark.parametrize("number", TOO_LARGE, ids=lambda n: f"{len(str(n))}-digits")
async def test_I17_an_id_beyond_64_bits_is_not_valid(
    api: Api, some_admin: Account, number: int
) -> None:
    for path in PATHS:
        assert_problem(await api.get(path.format(number), some_admin), 422)
    assert_problem(await api.get("/questions", some_admin, user_id=number), 422)


@pytest.mark.parametrize("text", ODD, ids=lambda text: text[:12])
async def test_I18_an_id_in_any_other_spelling_is_not_valid(
    api: Api, some_admin: Account, text: str
) -> None:
    for path in (*PATHS, "/questions?user_id={}"):
        problem = assert_problem(await api.get(path.format(text), some_admin), 422)
        (error,) = problem["errors"]
        assert error["loc"][0] in ("path", "query")
        assert error["message"] == "Must be a whole number."


async def test_I18_an_id_with_a_slash_in_it_is_another_path(
    api: Api, some_admin: Account
) -> None:
    for path in ("/questions/1%2F2", "/questions/1/2", "/questions/%2e%2e/users"):
        assert_problem(await api.get(path, some_admin), 404, "not_found")


@pytest.mark.parametrize(
    "limit",
    [
        *("0", "-1", "101", "1000000000", str(2**63), "x", "", "1.0", "%2B1", "%201"),
        *("1_0", "%D9%A3", "01", CANARY),
    ],
)
async def test_I19_a_page_size_that_is_none_is_not_valid(
    api: Api, some_admin: Account, limit: str
) -> None:
    for path in ("/users", "/questions"):
        problem = assert_problem(
            await api.get(f"{path}?limit={limit}", some_admin), 422
        )
        assert [error["loc"] for error in problem["errors"]] == [["query", "limit"]]


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "given",
    [
        "",
        CANARY,
        "%00",
        "%ff",
        "x" * 1_000,
        cursor("1"),
        cursor("{kind}:x"),
        cursor("{kind}:01"),
        cursor("{kind}:0"),
        cursor("{kind}:-5"),
        cursor(f"{{kind}}:{2**63}"),
        cursor("{kind}:99999999999999999999999999999999"),
        cursor("someone:1"),
    ],
    ids=lambda text: text[:24],
)
async def test_I19_a_cursor_that_was_never_given_is_not_valid(
    api: Api, some_admin: Account, given: str
) -> None:
    for kind in ("users", "questions"):
        path = f"/{kind}?cursor={_of_kind(given, kind)}"
        problem = assert_problem(await api.get(path, some_admin), 422)
        assert [error["loc"] for error in problem["errors"]] == [["query", "cursor"]]


def _of_kind(given: str, kind: str) -> str:
    try:
        text = base64.urlsafe_b64decode(given + "=" * (-len(given) % 4)).decode()
    except ValueError:
        return given
    return cursor(text.replace("{kind}", kind)) if "{kind}" in text else given


async def test_I19_a_cursor_of_another_list_or_spelling_is_not_valid(
    api: Api, some_admin: Account, somebody: Account
) -> None:
    await api.ask(somebody, "One?")
    await api.ask(somebody, "Two?")
    page = (await api.get("/questions", some_admin, limit=1)).json()
    ours = page["next_cursor"]
    assert (await api.get("/questions", some_admin, cursor=ours)).status_code == 200
    assert_problem(await api.get("/users", some_admin, cursor=ours), 422)
    for other in (f"{ours}=", f"{ours}==", f" {ours}", f"{ours}\n", f"{ours}!"):
        assert_problem(await api.get("/questions", some_admin, cursor=other), 422)


@pytest.mark.parametrize(
    "moment",
    [
        *("", "yesterday", "1700000000", "-1", "1e9", "2026-13-01T00:00:00Z", CANARY),
        *("2026-11-23", "2026-11-23T10:00:00", "2026-11-23T25:00:00Z", "infinity"),
        *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"),
        *("10000-01-01T00:00:00Z", "2026-11-23T10:00:00+99:00", "2026-02-30T00:00:00Z"),
    ],
)
async def test_a_moment_that_is_none_is_not_valid(
    api: Api, some_admin: Account, moment: str
) -> None:
    for name in ("asked_from", "asked_before"):
        answer = await api.get("/questions", some_admin, **{name: moment})
        problem = assert_problem(answer, 422)
        assert [error["loc"] for error in problem["errors"]] == [["query", name]]


@pytest.mark.parametrize(
    "moment",
    [
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999Z",
        "2026-11-23T10:00:00+14:00",
    ],
)
async def test_a_moment_of_any_year_is_valid(
    api: Api, some_admin: Account, moment: str
) -> None:
    for name in ("asked_from", "asked_before"):
        answer = await api.get("/questions", some_admin, **{name: moment})
        assert answer.status_code == 200, answer.text
