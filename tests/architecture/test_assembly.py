"""How an application is put together, and what refuses to be."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from core.app import create_app, new_context, opened
from core.errors import StartRefused
from core.module import Module, ModuleContext, load_modules
from core.settings import load_settings
from core.testing import NamedCallers, running
from tests.conftest import Databases, served
from tests.support.api import assert_problem
from tests.support.config import write_config
from tests.support.notes import install_module, install_notes
from tests.support.process import assert_refused, vopros


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a stranger's module `notes` is installed in."""
    folder = tmp_path / "site"
    install_notes(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def only(*names: str) -> str:
    return f"enabled = [{', '.join(repr(name) for name in names)}]"


# Who calls.


@pytest.mark.slow
async def test_protected_routes_without_anyone_to_authenticate_refuse_the_start(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    file = write_config(tmp_path / "app.toml", url, modules=only("users"))
    refused = vopros("--config", file, "serve", "--port", "0")
    assert_refused(
        refused,
        "/users",
        "is for known callers only, but no enabled module can authenticate them",
    )


async def test_a_strangers_module_is_tested_with_callers_of_the_harness(
    databases: Databases, notes: Path, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    names = only("users", "notes")
    file = write_config(tmp_path / "app.toml", url, modules=names)
    async with running(file, authenticator=NamedCallers()) as found:
        client = httpx.AsyncClient(base_url=found.url)
        async with client:

            async def whose(token: str | None) -> httpx.Response:
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                return await client.get("/notes/whose", headers=headers)

            assert (await whose("7")).json() == "user-7"
            assert_problem(await whose("nobody"), 401, "invalid_token")
            assert_problem(await whose(None), 401, "token_missing")
            users = await client.get("/users", headers={"Authorization": "Bearer 7"})
            assert_problem(users, 403, "admins_only")
            admin = {"Authorization": "Bearer 7:admin"}
            assert (await client.get("/users", headers=admin)).status_code == 200
            document = (await client.get("/openapi.json")).json()
            assert "/notes/whose" in document["paths"]


@pytest.mark.slow
async def test_a_strangers_module_lives_beside_ours(
    databases: Databases, database_kind: str, notes: Path, tmp_path: Path
) -> None:
    url = await databases.migrated(database_kind)
    names = only("users", "auth", "questions", "notes")
    file = write_config(tmp_path / "app.toml", url, modules=names)
    async with served(file) as (_, api):
        ada = await api.account("ada")
        assert (await api.get("/notes/whose", ada)).json() == "ada"
        assert_problem(await api.get("/notes/whose"), 401, "token_missing")


# In which order, and what cannot be.


Install = Callable[[dict[str, tuple[str, ...]]], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install modules that only require each other."""

    def put(requires: dict[str, tuple[str, ...]]) -> None:
        monkeypatch.syspath_prepend(str(tmp_path))
        for name, required in requires.items():
            module = f"Module(name={name!r}, requires={required!r})"
            code = f"from core.module import Module\nMODULE = {module}\n"
            install_module(tmp_path, name, module=code)

    return put


def test_modules_open_after_what_they_require(install: Install) -> None:
    install({"one": ("two", "three"), "two": ("three",), "three": (), "four": ()})
    loaded = [module.name for module in load_modules(["four", "one", "three"])]
    assert loaded == ["four", "three", "two", "one"]


def test_modules_that_require_each_other_are_refused(install: Install) -> None:
    install({"hen": ("egg",), "egg": ("nest",), "nest": ("hen",)})
    with pytest.raises(StartRefused, match="in a circle: hen -> egg -> nest -> hen"):
        load_modules(["hen"])


def test_a_missing_required_module_is_named_with_who_requires_it(
    install: Install,
) -> None:
    install({"lost": ("nowhere",)})
    with pytest.raises(StartRefused, match="'nowhere', which 'lost' requires"):
        load_modules(["lost"])


def test_a_module_under_another_name_is_refused(
    tmp_path: Path, install: Install
) -> None:
    install({"claimed": ()})
    file = tmp_path / "claimed_plugin" / "module.py"
    file.write_text(file.read_text().replace("'claimed'", "'another'"))
    with pytest.raises(StartRefused, match=r"does not provide .* called 'claimed'"):
        load_modules(["claimed"])


def test_a_module_that_two_packages_bring_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Install
) -> None:
    install({"twice": ()})
    second = tmp_path / "twice_again-3.dist-info"
    second.mkdir()
    (second / "METADATA").write_text("Name: twice-again\nVersion: 3\n")
    entries = tmp_path / "twice_plugin-1.2.dist-info" / "entry_points.txt"
    (second / "entry_points.txt").write_text(entries.read_text())
    with pytest.raises(StartRefused, match=r"more than one package .* 'twice'") as told:
        load_modules(["twice"])
    assert "twice-plugin 1.2" in str(told.value)
    assert "twice-again 3" in str(told.value)


# One at a time, and several at once.


@pytest.mark.slow
async def test_two_applications_in_one_process_share_nothing(
    databases: Databases, database_kind: str, tmp_path: Path
) -> None:
    files: list[Path] = []
    for name in ("one", "two"):
        url = await databases.migrated(database_kind)
        size = f"history_size = {len(name) + len(files)}"
        file = write_config(tmp_path / f"{name}.toml", url, questions=size)
        files.append(file)
    async with served(files[0]) as (first, one), served(files[1]) as (second, two):
        assert first.app is not second.app
        ada = await one.account("ada")
        assert_problem(await two.get("/users/me", ada), 401, "invalid_token")
        assert (await two.register("ada")).status_code == 201
        assert (await one.get("/users/me", ada)).json()["username"] == "ada"
        kinds = first.app.state.services, second.app.state.services
        assert kinds[0] is not kinds[1]


async def test_modules_close_in_reverse_even_when_one_cannot_open(
    databases: Databases, tmp_path: Path
) -> None:
    events: list[str] = []

    def recording(name: str, *, fails: bool = False) -> Module:
        @asynccontextmanager
        async def lifespan(context: ModuleContext) -> AsyncIterator[None]:
            if fails:
                raise StartRefused(f"{name} does not open")
            events.append(f"{name} opens")
            try:
                yield
            finally:
                events.append(f"{name} closes")

        return Module(name=name, lifespan=lifespan)

    url = await databases.migrated("sqlite")
    settings = load_settings(write_config(tmp_path / "app.toml", url), {})
    async with opened(new_context(settings), [recording("a"), recording("b")]):
        events.append("open")
    assert events == ["a opens", "b opens", "open", "b closes", "a closes"]

    events.clear()
    with pytest.raises(StartRefused, match="b does not open"):
        async with opened(
            new_context(settings), [recording("a"), recording("b", fails=True)]
        ):
            events.append("open")
    assert events == ["a opens", "a closes"]


def test_building_an_application_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "vopros.db"
    file = write_config(tmp_path / "app.toml", f"sqlite+aiosqlite:///{path}")
    create_app(load_settings(file, {}))
    assert not path.parent.exists()
