"""The command line as an operator uses it: real processes, real files."""

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from core.module import ROOT
from tests.conftest import Databases
from tests.support.api import PASSWORD, Api
from tests.support.config import SECRET, write_config
from tests.support.notes import install_notes
from tests.support.process import (
    COMMAND,
    assert_refused,
    environment,
    serving,
    vopros,
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with a SQLite file of its own."""
    return write_config(
        tmp_path / "app.toml", f"sqlite+aiosqlite:///{tmp_path}/vopros.db"
    )


@pytest.fixture
async def migrated(databases: Databases, tmp_path: Path) -> Path:
    """A configuration whose SQLite file is at the newest revision."""
    return write_config(tmp_path / "app.toml", await databases.migrated("sqlite"))


# Serving.


@pytest.mark.slow
def test_F22_a_second_server_on_one_sqlite_file_is_refused(
    config: Path, tmp_path: Path
) -> None:
    with serving("--config", config) as server:
        again = vopros("--config", config, "serve", "--port", "0")
        assert_refused(again, str(tmp_path / "vopros.db"), str(server.process.pid))

        (tmp_path / "linked").symlink_to(tmp_path)
        (tmp_path / "other.db").symlink_to(tmp_path / "vopros.db")
        for path in ("linked/vopros.db", "other.db"):
            url = f"sqlite+aiosqlite:///{tmp_path}/{path}"
            through = write_config(tmp_path / "linked.toml", url)
            again = vopros("--config", through, "serve", "--port", "0")
            assert_refused(again, str(server.process.pid))
        assert httpx.get(f"{server.url}/health/ready").status_code == 200

        server.end(signal.SIGKILL)
        with serving("--config", config) as heir:
            assert httpx.get(f"{heir.url}/health/ready").status_code == 200


@pytest.mark.slow
def test_a_port_in_use_is_one_line(config: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused = vopros("--config", config, "serve", "--port", port)
    assert_refused(refused, "127.0.0.1", port, "Address already in use")


@pytest.mark.slow
def test_an_address_that_is_not_ours_is_one_line(config: Path) -> None:
    refused = vopros("--config", config, "serve", "--host", "192.0.2.1", "--port", "0")
    assert_refused(refused, "192.0.2.1")


@pytest.mark.slow
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_F05_an_idle_server_ends_cleanly_when_told_to(
    config: Path, sig: signal.Signals
) -> None:
    with serving("--config", config) as server:
        started = time.monotonic()
        assert server.end(sig) == 0
        assert time.monotonic() - started < 20
    assert "Traceback" not in server.log
    assert not (config.parent / "vopros.db-wal").exists()


@pytest.mark.slow
def test_F08_a_server_without_its_database_says_so_and_ends(tmp_path: Path) -> None:
    url = f"postgresql+asyncpg://postgres:{PASSWORD}@127.0.0.1:9/vopros"
    limits = "start_seconds = 0.5"
    file = write_config(tmp_path / "app.toml", url, database=limits)
    for command in (["serve", "--port", "0"], ["migrate"]):
        refused = vopros("--config", file, *command)
        assert_refused(refused, "the database did not answer in 0.5 s")


def without_root_powers() -> None:
    """Make file modes hold for root as well; nothing to do for anybody else."""
    import ctypes

    drop, override, read_search = 24, 1, 2
    for capability in (override, read_search):
        ctypes.CDLL(None).prctl(drop, capability, 0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_F21_a_start_on_a_read_only_database_is_refused_with_the_reason(
    config: Path, closed: str
) -> None:
    assert vopros("--config", config, "migrate").returncode == 0
    folder = config.parent
    for left in folder.glob("vopros.db?*"):
        left.unlink()
    (folder / "vopros.db").chmod(0o400 if closed == "file" else 0o600)
    folder.chmod(0o500 if closed == "folder" else 0o700)
    try:
        refused = subprocess.run(
            [*COMMAND, "--config", str(config), "serve", "--port", "0"],
            cwd=ROOT,
            env=environment(),
            preexec_fn=without_root_powers,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        folder.chmod(0o700)
    assert_refused(refused, str(folder / "vopros.db"))


def test_F21_a_missing_folder_is_made(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/a/b/vopros.db"
    with serving("--config", write_config(tmp_path / "app.toml", url)) as server:
        assert httpx.get(f"{server.url}/health/ready").status_code == 200


@pytest.mark.slow
def test_F21_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    url = f"sqlite+aiosqlite:///{tmp_path}/file/vopros.db"
    file = write_config(tmp_path / "app.toml", url)
    for command in (["serve", "--port", "0"], ["migrate"]):
        refused = vopros("--config", file, *command)
        assert_refused(refused, str(tmp_path / "file"))


@pytest.mark.slow
def test_the_server_says_where_swagger_is_and_who_answers_and_why(
    tmp_path: Path,
) -> None:
    file = tmp_path / "app.toml"
    file.write_text(
        f'[database]\nurl = "sqlite+aiosqlite:///{tmp_path}/vopros.db"\n'
        '[llm]\nauto = ["openai", "echo"]\n'
        '[providers.openai]\ntype = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n'
        'model = "m"\napi_key = "${OPENAI_API_KEY}"\n'
        '[providers.echo]\ntype = "echo"\n'
    )
    with serving("--config", file) as server:
        page = httpx.get(f"{server.url}/docs")
        assert page.status_code == 200
        assert "swagger" in page.text
        # Why it is this provider is not everybody's business.
        ready = httpx.get(f"{server.url}/health/ready")
        for answer in (page, ready, httpx.get(f"{server.url}/openapi.json")):
            assert "OPENAI_API_KEY" not in answer.text
    assert "provider: echo (a demonstration" in server.log
    why = "chosen by auto: openai: the variable OPENAI_API_KEY is not set"
    assert why in server.log
    assert f"Swagger: {server.url}/docs" in server.log


@pytest.mark.slow
def test_one_word_switches_the_provider(tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    file.write_text(
        f'[database]\nurl = "sqlite+aiosqlite:///{tmp_path}/vopros.db"\n'
        '[llm]\nprovider = "one"\n'
        '[providers.one]\ntype = "echo"\n[providers.two]\ntype = "echo"\n'
    )
    for name in ("one", "two"):
        env = {"VOPROS_LLM__PROVIDER": name}
        with serving("--config", file, env=env) as server:
            assert f"provider: {name} (" in server.log


# Accounts.


@pytest.fixture
async def url(databases: Databases, database_kind: str) -> str:
    return await databases.migrated(database_kind)


@pytest.mark.slow
async def test_an_administrator_is_made_beside_a_running_server(
    url: str, tmp_path: Path
) -> None:
    file = write_config(tmp_path / "app.toml", url)
    kept = tmp_path / "password"
    kept.write_text(f"{PASSWORD}\n")

    def accounts(*arguments: str | Path, stdin: str = "") -> str:
        done = vopros("--config", file, "accounts", *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        return done.stdout

    with serving("--config", file) as server:
        api = Api(server.url)
        typed = accounts("create-admin", "Grace", stdin=f"{PASSWORD}\n")
        number = int(re.fullmatch(r"created .* Grace with id (\d+)\n", typed)[1])  # type: ignore[index]
        grace = await api.signed_in(number, "grace")
        assert (await api.get("/users", grace)).status_code == 200

        accounts("create-admin", "ada", "--password-file", kept)
        ada = await api.signed_in(0, "ada")
        assert (await api.get("/users", ada)).status_code == 200

        # What is changed holds on the very next request.
        assert accounts("set-role", "ADA", "user") == "ada is now user\n"
        assert (await api.get("/users", ada)).status_code == 403
        assert accounts("set-role", "ada", "admin") == "ada is now admin\n"
        assert (await api.get("/users", ada)).status_code == 200
        await api.close()


@pytest.mark.slow
async def test_what_accounts_cannot_do_is_one_line(url: str, tmp_path: Path) -> None:
    file = write_config(tmp_path / "app.toml", url)
    password = f"{PASSWORD}\n"

    def refused(
        words: tuple[str, ...], *arguments: str | Path, stdin: str = ""
    ) -> None:
        done = vopros("--config", file, "accounts", *arguments, stdin=stdin)
        assert_refused(done, *words)
        assert PASSWORD not in done.stderr

    made = vopros("--config", file, "accounts", "create-admin", "ada", stdin=password)
    assert made.returncode == 0, made.stderr
    taken = ("Somebody has this user name already",)
    refused(taken, "create-admin", "ADA", stdin=password)
    nobody = ("There is no such user.",)
    refused(nobody, "set-role", "nobody-here", "admin")
    last = ("The last administrator cannot go.",)
    refused(last, "set-role", "ada", "user")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["create-admin", "a b"], PASSWORD, ["user name: ", "single . _ -"]),
        (["create-admin", "ada"], "short", ["password: ", "at least 8"]),
        (["create-admin", "ada"], "password1", ["password: ", "most common"]),
        (["create-admin", "ada"], "", ["password: ", "at least 8"]),
        (["create-admin", "ada"], "x" * 129, ["password: ", "at most 128"]),
        (
            ["create-admin", "ada", "--password-file", "nowhere"],
            "",
            ["nowhere: the password cannot be read"],
        ),
        (["set-role", "ada", "root"], "", ["one of user, admin"]),
    ],
)
def test_what_no_account_can_have_is_one_line(
    migrated: Path, arguments: list[str], stdin: str, words: list[str]
) -> None:
    refused = vopros("--config", migrated, "accounts", *arguments, stdin=stdin)
    assert_refused(refused, *words)
    assert not stdin or stdin not in refused.stderr


@pytest.mark.slow
def test_a_password_cannot_be_given_on_the_command_line(config: Path) -> None:
    vopros("--config", config, "migrate")
    for extra in ([PASSWORD], ["--password", PASSWORD]):
        done = vopros("--config", config, "accounts", "create-admin", "ada", *extra)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_accounts_on_a_database_that_is_not_migrated_are_refused(
    config: Path,
) -> None:
    create = ["accounts", "create-admin", "ada"]
    refused = vopros("--config", config, *create, stdin=f"{PASSWORD}\n")
    assert_refused(refused, "no such database: run `vopros migrate`")
    # Not even a signing secret has been made.
    assert [found.name for found in config.parent.iterdir()] == [config.name]


@pytest.mark.slow
def test_the_first_administrator_is_made_beside_a_fresh_embedded_server(
    tmp_path: Path,
) -> None:
    file = tmp_path / "app.toml"
    file.write_text(
        f'[database]\nurl = "sqlite+aiosqlite:///{tmp_path}/vopros.db"\n'
        '[llm]\nprovider = "echo"\n[providers.echo]\ntype = "echo"\n'
    )
    with serving("--config", file) as server:
        create = ["accounts", "create-admin", "ada"]
        made = vopros("--config", file, *create, stdin=f"{PASSWORD}\n")
        assert made.returncode == 0, made.stderr
        form = {"grant_type": "password", "username": "ada", "password": PASSWORD}
        assert httpx.post(f"{server.url}/auth/token", data=form).status_code == 200


# Migrating by hand.


@pytest.mark.slow
def test_migrations_go_forth_and_back_by_command(config: Path) -> None:
    def migrate(*arguments: str) -> str:
        done = vopros("--config", config, "migrate", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert migrate() == "migrated: users, auth, questions\n"
    assert migrate() == "nothing to migrate\n"
    down = migrate("down", "questions", "--to", "base", "--yes")
    assert down.endswith("\nquestions is at base\n")
    assert migrate() == "migrated: questions\n"
    back = ("--to", "base", "--yes")
    refused = vopros("--config", config, "migrate", "down", "users", *back)
    assert_refused(refused, "requires 'users' and is applied")
    refused = vopros("--config", config, "migrate", "down", "nosuch", *back)
    assert_refused(refused, "there is no module 'nosuch' with tables")
    refused = vopros("--config", config, "revision", "nosuch", "Something")
    assert_refused(refused, "there is no module 'nosuch' with tables")


@pytest.mark.slow
async def test_neither_migrating_nor_accounts_need_a_model_that_can_be_asked(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.empty("postgresql")
    file = tmp_path / "app.toml"
    file.write_text(
        f'[database]\nurl = "{url}"\n[llm]\nprovider = "main"\n[providers.main]\n'
        'type = "openai"\nbase_url = "https://example.org/v1"\nmodel = "m"\n'
        'api_key = "${NOT_SET_ANYWHERE}"\n'
    )
    checked = vopros("--config", file, "config", "check")
    assert "NOT_SET_ANYWHERE" in checked.stderr
    migrated = vopros("--config", file, "migrate")
    assert migrated.stdout == "migrated: users, auth, questions\n", migrated.stderr

    create = ["--config", str(file), "accounts", "create-admin", "ada"]
    refused = vopros(*create, stdin=f"{PASSWORD}\n")
    assert_refused(refused, "[auth] secret: ", "is needed on this server", code=78)
    env = {"VOPROS_AUTH__SECRET": SECRET}
    made = vopros(*create, stdin=f"{PASSWORD}\n", env=env)
    assert made.stdout.startswith("created administrator ada"), made.stderr
    back = ("migrate", "down", "questions", "--to", "base", "--yes")
    down = vopros("--config", file, *back)
    assert down.returncode == 0, down.stderr


# What is installed.


def test_plugins_lists_what_is_ours() -> None:
    done = vopros("plugins")
    found = {tuple(line.split()[:2]) for line in done.stdout.splitlines()}
    ours = {("module", name) for name in ("users", "auth", "questions", "providers")}
    assert ours | {("provider", n) for n in ("openai", "local", "echo")} <= found


@pytest.mark.slow
def test_a_strangers_module_is_listed_but_runs_only_when_it_is_named(
    config: Path, tmp_path: Path
) -> None:
    package = install_notes(tmp_path / "site")
    env = {"PYTHONPATH": str(tmp_path / "site")}
    listed = vopros("--config", config, "plugins", env=env)
    assert "notes-plugin 1.2" in listed.stdout
    helped = vopros("--config", config, "--help", env=env)
    assert "notes" not in helped.stdout
    for command in (["config", "check"], ["migrate"]):
        assert vopros("--config", config, *command, env=env).returncode == 0
    assert not (package / "has_run").exists()

    with config.open("a") as file:
        file.write('[modules]\nenabled = ["users", "auth", "notes"]\n')
    assert "notes" in vopros("--config", config, "--help", env=env).stdout
    counted = vopros("--config", config, "notes", "count", env=env)
    assert counted.stdout == "no notes\n"
    by_variable = env | {"VOPROS_CONFIG": str(config)}
    assert vopros("notes", "count", env=by_variable).stdout == "no notes\n"


@pytest.mark.slow
def test_a_broken_strangers_module_is_named(config: Path, tmp_path: Path) -> None:
    package = install_notes(tmp_path / "site")
    env = {"PYTHONPATH": str(tmp_path / "site")}
    with config.open("a") as file:
        file.write('[modules]\nenabled = ["notes"]\n')
    for code in ("import nowhere_to_be_found", "raise SystemExit(0)", "MODULE = 7"):
        (package / "module.py").write_text(code)
        refused = vopros("--config", config, "config", "check", env=env)
        assert_refused(refused, "module 'notes' of notes-plugin 1.2", code=78)
        # The rest of the command line works.
        assert vopros("--config", config, "--help", env=env).returncode == 0


def test_broken_commands_of_a_strangers_module_do_not_stop_the_rest(
    config: Path, tmp_path: Path
) -> None:
    package = install_notes(tmp_path / "site")
    env = {"PYTHONPATH": str(tmp_path / "site")}
    with config.open("a") as file:
        file.write('[modules]\nenabled = ["notes"]\n')
    (package / "commands.py").write_text("import nowhere_to_be_found")
    checked = vopros("--config", config, "config", "check", env=env)
    assert checked.returncode == 0
    (line,) = checked.stderr.splitlines()
    why = "ModuleNotFoundError: No module named 'nowhere_to_be_found'"
    by = "module 'notes' of notes-plugin 1.2: notes_plugin.commands"
    assert line.startswith(f"vopros: {by} cannot be loaded: {why}")


# Help.

HELP = """
import sys
import core.cli
sys.argv = ["vopros", *sys.argv[1:]]
try:
    core.cli.main()
except SystemExit:
    pass
heavy = {"fastapi", "starlette", "sqlalchemy", "uvicorn", "aiohttp", "alembic"}
print(sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["accounts", "--help"],
        ["migrate", "--help"],
        ["providers", "--help"],
        [],
    ],
)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP, *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "Usage: vopros" in done.stdout + done.stderr
    assert done.stderr.endswith("[]\n")


@pytest.mark.slow
def test_help_works_whatever_the_configuration_is(tmp_path: Path) -> None:
    file = tmp_path / "app.toml"
    for text in ("not toml", '[modules]\nenabled = ["nosuch"]', "[modules]\nx = 1"):
        file.write_text(f'{text}\n[providers.echo]\ntype = "echo"\n')
        done = vopros("--config", file, "--help")
        assert done.returncode == 0
        assert "accounts" in done.stdout
        assert_refused(vopros("--config", file, "config", "check"), code=78)


def test_an_unknown_command_is_told_without_a_traceback() -> None:
    done = vopros("nosuch")
    assert done.returncode == 2
    assert "nosuch" in done.stderr
    assert "Traceback" not in done.stderr
