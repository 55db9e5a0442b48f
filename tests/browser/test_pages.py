"""The pages as a newcomer uses them, in a browser without the internet."""

import json
import re
from pathlib import Path

import pytest
from playwright.async_api import Locator, Page, Response, expect

from core.testing import Running
from tests.conftest import Databases, served
from tests.support.api import PASSWORD, Account, Api, assert_problem
from tests.support.config import write_config
from tests.support.reverse_proxy import reverse_proxy
from tests.support.upstream import Upstream

pytestmark = pytest.mark.browser


async def open_docs(page: Page, url: str) -> None:
    await page.goto(f"{url}/docs")
    await expect(page.locator(".opblock").first).to_be_visible()


def operation(page: Page, method: str, path: str) -> Locator:
    """The block of one operation."""
    return page.locator(f".opblock-{method}").filter(
        has=page.locator(f'[data-path="{path}"]')
    )


async def execute(block: Locator, body: object = None) -> tuple[int, str]:
    """Try an operation out as it is opened; return what the page then shows."""
    await block.locator(".opblock-summary-control").click()
    if body is not None:
        await block.locator("textarea.body-param__text").fill(json.dumps(body))
    await block.get_by_role("button", name="Execute").click()
    live = block.locator(".live-responses-table .response")
    await expect(live).to_be_visible()
    status = int((await live.locator(".response-col_status").inner_text()).split()[0])
    return status, await live.inner_text()


async def execute_again(block: Locator, content: str) -> Response:
    """Ask with an operation that is open, touching nothing but the question."""
    await block.locator("textarea.body-param__text").fill(
        json.dumps({"content": content})
    )
    page = block.page
    async with page.expect_response(lambda got: got.request.method == "POST") as got:
        await block.get_by_role("button", name="Execute").click()
    answered = await got.value
    await answered.finished()
    return answered


async def authorize(page: Page, username: str, password: str) -> None:
    """Fill the dialog and send it; it stays open, with whatever came of it."""
    await page.locator(".auth-wrapper .authorize").click()
    await page.locator(".dialog-ux").get_by_label("username").fill(username)
    await page.locator(".dialog-ux").get_by_label("password").fill(password)
    await page.locator(".dialog-ux .modal-btn.authorize").click()


async def close_dialog(page: Page) -> None:
    await page.locator(".dialog-ux .btn-done").click()


async def journey(page: Page, url: str) -> None:
    """Register, authorize, ask, and read the last three, all by hand."""
    await open_docs(page, url)
    new = {"username": "newcomer", "password": PASSWORD}
    status, shown = await execute(operation(page, "post", "/auth/register"), new)
    assert (status, "newcomer" in shown) == (201, True)

    await authorize(page, "newcomer", PASSWORD)
    await expect(page.locator(".dialog-ux")).to_contain_text("Authorized")
    await close_dialog(page)

    ask = operation(page, "post", "/questions")
    status, shown = await execute(ask, {"content": "Does this work?"})
    assert status == 201
    assert "Answer to: Does this work?" in shown

    status, shown = await execute(operation(page, "get", "/questions/me"))
    assert status == 200
    assert "Answer to: Does this work?" in shown


async def test_a_newcomer_registers_authorizes_asks_and_reads_back(
    page: Page, service: Running
) -> None:
    await journey(page, service.url)


async def test_a_newcomer_asks_again_streams_and_reads_an_error(
    page: Page, service: Running, ada: Account
) -> None:
    await page.goto(service.url)
    await expect(page).to_have_url(f"{service.url}/docs")
    await authorize(page, ada.username, ada.password)
    await close_dialog(page)

    ask = operation(page, "post", "/questions")
    status, _ = await execute(ask, {"content": "Which city?"})
    assert status == 201
    ids = set()
    for content in ("Which river?", "Which river?"):
        answered = await execute_again(ask, content)
        assert (
            answered.status,
            await answered.header_value("idempotency-replayed"),
        ) == (
            201,
            None,
        )
        question = await answered.json()
        assert question["answer"] == f"Answer to: {content}"
        ids.add(question["id"])
    assert len(ids) == 2

    stream = operation(page, "post", "/questions/stream")
    status, shown = await execute(stream, {"content": "Which sea?"})
    assert (status, "event: done" in shown) == (200, True)

    status, shown = await execute(operation(page, "get", "/questions/me"))
    assert status == 200
    assert shown.index("Which sea?") < shown.index("Which river?")
    assert "Which city?" not in shown

    refused = await execute_again(ask, "  ")
    assert refused.status == 422
    live = ask.locator(".live-responses-table .response")
    await expect(live).to_contain_text("Must not be blank.")


async def test_what_may_be_left_out_is_empty_on_the_page(
    page: Page, service: Running
) -> None:
    await open_docs(page, service.url)
    for path in ("/questions", "/questions/stream"):
        block = operation(page, "post", path)
        await block.locator(".opblock-summary-control").click()
        key = block.locator('tr[data-param-name="Idempotency-Key"] input')
        await expect(key).to_have_value("")
    change = operation(page, "patch", "/users/me")
    await change.locator(".opblock-summary-control").click()
    await expect(change.locator("textarea.body-param__text")).to_have_value("{}")


async def test_the_pages_work_behind_a_reverse_proxy_under_a_path(
    page: Page, databases: Databases, upstream: Upstream, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    file = tmp_path / "app.toml"
    write_config(file, url, upstream.base_url, server='root_path = "/api"')
    async with served(file) as (found, _), reverse_proxy(found.url, "/api") as proxied:
        await journey(page, proxied)
        await page.goto(f"{proxied}/")
        await expect(page).to_have_url(f"{proxied}/docs")
        await page.goto(f"{proxied}/redoc")
        await expect(page.get_by_role("heading", name="Vopros")).to_be_visible()


async def test_without_authorizing_the_page_shows_the_problem(
    page: Page, service: Running
) -> None:
    await open_docs(page, service.url)
    status, shown = await execute(operation(page, "get", "/users/me"))
    assert (status, "token_missing" in shown) == (401, True)


async def test_a_wrong_password_is_told_in_the_dialog(
    page: Page, service: Running, ada: Account
) -> None:
    await open_docs(page, service.url)
    await authorize(page, ada.username, "not-the-password")
    wrong = "The user name or the password is wrong."
    await expect(page.locator(".dialog-ux .errors")).to_contain_text(wrong)


async def test_the_dialog_asks_for_user_name_and_password_only(
    page: Page, service: Running
) -> None:
    await open_docs(page, service.url)
    await page.locator(".auth-wrapper .authorize").click()
    dialog = page.locator(".dialog-ux")
    await expect(dialog.locator("input:visible")).to_have_count(2)
    await expect(dialog.locator("select:visible")).to_have_count(0)
    text = await dialog.inner_text()
    assert "Sign in with your user name and password." in text
    assert not re.search("client|scope", text, re.IGNORECASE)


async def test_a_padlock_marks_what_needs_an_account(
    page: Page, service: Running
) -> None:
    await open_docs(page, service.url)
    open_to_all = set()
    blocks = page.locator(".opblock")
    for index in range(await blocks.count()):
        block = blocks.nth(index)
        if not await block.locator(".authorization__btn").count():
            path = await block.locator("[data-path]").get_attribute("data-path")
            open_to_all.add(path)
    assert open_to_all == {
        "/auth/refresh",
        "/auth/register",
        "/auth/token",
        "/health/live",
        "/health/ready",
    }


async def test_the_page_tells_of_refreshing_and_signs_out_and_in_again(
    page: Page, service: Running, api: Api
) -> None:
    ada = await api.account()
    await open_docs(page, service.url)
    told = page.locator(".opblock-tag-section").filter(has_text="auth").first
    await expect(told).to_contain_text("POST /auth/refresh gets the next one")
    await expect(told).to_contain_text("POST /auth/logout ends the session")

    await authorize(page, ada.username, PASSWORD)
    await close_dialog(page)
    status, _ = await execute(operation(page, "post", "/auth/logout"))
    assert status == 204
    status, shown = await execute(operation(page, "get", "/users/me"))
    assert (status, "invalid_token" in shown) == (401, True)

    await page.locator(".auth-wrapper .authorize").click()
    await page.locator(".dialog-ux .modal-btn", has_text="Logout").click()
    await close_dialog(page)
    await authorize(page, ada.username, PASSWORD)
    await close_dialog(page)
    status, shown = await execute(operation(page, "get", "/auth/sessions"))
    assert (status, '"is_current": true' in shown) == (200, True)


async def test_redoc_renders_without_the_internet(page: Page, service: Running) -> None:
    await page.goto(f"{service.url}/redoc")
    await expect(page.get_by_role("heading", name="Vopros")).to_be_visible()
    last = page.get_by_role("heading", name="See your last questions")
    await expect(last).to_be_visible()
    # The very end of the page, where its makers would like to show a logo.
    await expect(page.get_by_text("API docs by Redocly")).to_be_visible()
    await page.wait_for_load_state("networkidle")


async def test_pages_that_are_switched_off_are_not_there(
    page: Page, databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    file = write_config(tmp_path / "app.toml", url, server="docs = false")
    async with served(file) as (_, api):
        for path in ("/", "/docs", "/redoc", "/openapi.json", "/docs/style.css"):
            assert_problem(await api.http.get(path), 404, "not_found")
            shown = await page.goto(f"{api.url}{path}")
            assert shown is not None and shown.status == 404


async def test_the_token_is_kept_in_the_page_alone(page: Page, api: Api) -> None:
    ada = await api.account()
    await open_docs(page, api.url)
    await authorize(page, ada.username, ada.password)
    await expect(page.locator(".dialog-ux")).to_contain_text("Authorized")
    stored = "JSON.stringify({...localStorage, ...sessionStorage})"
    assert await page.evaluate(stored) == "{}"
    assert await page.context.cookies() == []


async def test_an_operation_is_read_without_scrolling_for_long(
    page: Page, service: Running
) -> None:
    await open_docs(page, service.url)
    for method, path in (("post", "/questions"), ("post", "/questions/stream")):
        block = operation(page, method, path)
        await block.locator(".opblock-summary-control").click()
        await expect(block.locator(".responses-table")).to_be_visible()
        box = await block.bounding_box()
        assert box is not None
        assert box["height"] < 5_000, path
        await block.locator(".opblock-summary-control").click()


async def test_the_page_tells_who_may_call_an_operation(
    page: Page, service: Running
) -> None:
    await open_docs(page, service.url)
    public = operation(page, "post", "/auth/register")
    await expect(public.locator(".authorization__btn")).to_have_count(0)
    private = operation(page, "get", "/users/me")
    await expect(private.locator(".authorization__btn")).to_have_count(1)
    restricted = operation(page, "get", "/users")
    await expect(restricted).to_contain_text("(administrators)")
