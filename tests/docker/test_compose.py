"""What a user does with the Dockerfile and docker-compose.yml, on a real engine."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.module import ROOT
from core.settings import ServerSettings
from tests.docker.engine import Engine
from tests.docker.project import CANARY, Project, example_of_env, project

pytestmark = pytest.mark.docker

UID = "10001"
SECRETS = "/var/lib/vopros/secrets"
QUESTION = "What is the capital of France? Answer in one sentence."
ACCOUNT = {"username": "ada", "password": "a horse, a battery, a staple"}
HOST = "answers.example.org"
# As an editor on Windows leaves it, and quoted as in many an example.
WINDOWS_ENV = f"""\
# a comment\r
WITH_LOCAL_MODEL="0"\r
OPENAI_API_KEY='sk-key'\r
VOPROS_LLM__PROVIDER="openai"\r
\r
VOPROS_PROVIDERS__OPENAI__BASE_URL=http://127.0.0.1:9000/v1\r
VOPROS_PROVIDERS__OPENAI__MODEL="model-1"\r
VOPROS_SERVER__ALLOWED_HOSTS="{HOST}"\r
"""


@pytest.fixture(scope="module")
def local(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """A fresh clone that is up: the demonstration model answers."""
    with project(engine, tmp_path_factory.mktemp("local"), "local") as found:
        found.up()
        yield found


@pytest.fixture(scope="module")
def small(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    """A fresh clone that is up without the demonstration model."""
    with project(engine, tmp_path_factory.mktemp("small"), "small") as found:
        found.write_env("WITH_LOCAL_MODEL=0\n")
        found.up()
        yield found


def sign_in(http: httpx.Client) -> None:
    form = {"grant_type": "password", **ACCOUNT}
    token = http.post("/auth/token", data=form).json()["access_token"]
    http.headers["Authorization"] = f"Bearer {token}"


def register(http: httpx.Client) -> None:
    assert http.post("/auth/register", json=ACCOUNT).status_code == 201
    sign_in(http)


def ask(http: httpx.Client, content: str = QUESTION) -> dict[str, Any]:
    asked = http.post("/questions", json={"content": content})
    assert asked.status_code == 201, asked.text
    question: dict[str, Any] = asked.json()
    assert question["status"] == "answered"
    return question


def newest(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/questions/me").json()[0]
    return found


def test_a_question_outlives_a_restart_and_a_down(local: Project) -> None:
    with local.client() as http:
        register(http)
        question = ask(http)
        assert question["provider"] == "local"
        assert question["usage"]["completion_tokens"] > 0
        assert newest(http) == question
        assert http.get("/docs").status_code == 200
        foreign = http.get("/health/live", headers={"Host": "elsewhere.example"})
        assert foreign.status_code == 400
        who = http.headers["Authorization"]
    local.compose("restart", "api")
    local.await_health("healthy")
    with local.client() as http:
        # Neither are the signing secret's tokens void.
        http.headers["Authorization"] = who
        assert newest(http) == question
    local.compose("down")
    local.up()
    assert "nothing to migrate" in local.compose("logs", "migrate")
    assert local.compose("logs", "secrets").count(": kept") == 2
    with local.client() as http:
        sign_in(http)
        assert newest(http) == question
    local.compose("down", "--volumes")
    assert local.leftovers() == []
    local.up()
    with local.client() as http:
        register(http)
        assert http.get("/questions/me").json() == []


def test_no_process_of_ours_is_root_or_could_become_it(small: Project) -> None:
    processes = small.execute("cat /proc/[0-9]*/status").split("Name:\t")[1:]
    assert len(processes) >= 3  # init, the API, and this command
    for process in processes:
        status = dict(line.split(":\t") for line in process.splitlines()[1:])
        assert status["Uid"].split() == [UID] * 4
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert status["NoNewPrivs"] == "1"


def test_nothing_can_be_written_but_in_tmp(small: Project) -> None:
    places = f"/ /app /opt/vopros /etc /var/lib/vopros {SECRETS}"
    test = f"for at in {places}; do touch $at/new 2>/dev/null && echo $at; done; true"
    assert small.execute(test) == ""
    assert small.execute("touch /tmp/new && echo written") == "written\n"


@pytest.mark.parametrize("kind", ["local", "small"])
def test_the_image_holds_the_service_and_nothing_else(
    kind: str, request: pytest.FixtureRequest
) -> None:
    made: Project = request.getfixturevalue(kind)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert set(made.execute("ls -A /app").split()) == let_in
    assert made.execute("command -v cc gcc make git curl; true") == ""
    assert made.execute(f"grep -rl {CANARY} /app || true") == ""
    assert made.execute("find /app ! -user root") == ""
    local = made.execute("python -c 'import xllamacpp' 2>/dev/null && echo y || true")
    assert bool(local) is (kind == "local")


def test_only_the_api_is_published_and_only_to_this_machine(small: Project) -> None:
    def bound(service: str) -> list[str]:
        ports = small.inspect(service)["NetworkSettings"]["Ports"]
        return [at["HostIp"] for found in ports.values() for at in found or ()]

    assert bound("api") == ["127.0.0.1"]
    assert bound("db") == []


def test_secrets_are_their_readers_alone(small: Project) -> None:
    listed = small.execute(f"stat -c '%u %a %n' {SECRETS} {SECRETS}/*").splitlines()
    names = ("database.password", "signing.secret")
    assert listed == [
        f"{UID} 700 {SECRETS}",
        *(f"{UID} 600 {SECRETS}/{name}" for name in names),
    ]
    secrets = [small.execute(f"cat {SECRETS}/{name}").strip() for name in names]
    seen = small.compose("logs")
    # Whoever inspects a container sees its environment.
    seen += "".join(str(small.inspect(service)) for service in ("api", "db"))
    assert secrets[0] != secrets[1]
    assert not any(secret in seen for secret in secrets)


def health_check(made: Project) -> str:
    """The command of the image's health check."""
    kind, *command = made.inspect("api")["Config"]["Healthcheck"]["Test"]
    assert kind == "CMD"
    return shlex.join(command)


def test_a_process_that_hangs_is_unhealthy(small: Project) -> None:
    # All but the first, which is init, and the shell itself.
    small.execute("kill -STOP -1")
    small.await_health("unhealthy")
    small.execute("kill -CONT -1")
    small.await_health("healthy")


def test_the_health_check_asks_the_server_itself(small: Project) -> None:
    check = health_check(small)
    proxy = "http://127.0.0.1:9"
    small.execute(check, http_proxy=proxy, HTTP_PROXY=proxy, all_proxy=proxy)
    # The names are in the file only: it has no way to know them.
    small.execute(check, VOPROS_SERVER__ALLOWED_HOSTS="")
    with pytest.raises(AssertionError, match="refused"):
        small.execute(check, VOPROS_SERVER__PORT="9")


def test_without_a_database_the_api_is_unhealthy(small: Project) -> None:
    small.compose("stop", "db")
    small.await_health("unhealthy")
    small.compose("start", "db")
    small.await_health("healthy")


@contextmanager
def model(made: Project) -> Iterator[subprocess.Popen[str]]:
    """The language model of model.py, on the API's own loopback: a key goes there."""
    name = f"{made.name}-model"
    script = Path(__file__).with_name("model.py").read_text(encoding="utf-8")
    network = ("--network", f"container:{made.container('api')}")
    process = subprocess.Popen(
        [
            *("docker", "run", "--rm", "--interactive", "--no-healthcheck"),
            *("--name", name, *network, made.image, "python", "-c", script),
        ],
        env=made.engine.environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    try:
        yield process
    finally:
        made.engine.run("docker", "rm", "--force", name, check=False)
        process.communicate()


def test_env_decides_who_answers_and_stopping_waits_for_the_answer(
    small: Project,
) -> None:
    with small.client() as http:
        register(http)
        assert ask(http)["provider"] == "echo"
    small.write_env(WINDOWS_ENV)
    small.up()
    with (
        model(small) as upstream,
        small.client(HOST) as http,
        ThreadPoolExecutor() as pool,
    ):
        assert upstream.stdin and upstream.stdout
        assert http.get("/health/live", headers={"Host": "x"}).status_code == 400
        sign_in(http)
        asked = pool.submit(ask, http)
        told = json.loads(upstream.stdout.readline())
        assert told == ["Bearer sk-key", "model-1", QUESTION]
        stopped = pool.submit(small.compose, "stop")
        with small.client(HOST) as other:
            small.wait_until(lambda: not is_live(other), "the stop has begun")
        assert not asked.done()
        print(file=upstream.stdin)
        question = asked.result()
        assert question["answer"] == f"Answer to: {QUESTION}"
        stopped.result()
    assert small.inspect("api")["State"]["ExitCode"] == 0
    small.compose("start")
    small.await_health("healthy")
    with small.client(HOST) as http:
        sign_in(http)
        assert newest(http) == question


def is_live(http: httpx.Client) -> bool:
    try:
        return http.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_every_line_of_the_example_of_env_reaches_the_api(
    engine: Engine, tmp_path: Path
) -> None:
    with project(engine, tmp_path, "example") as made:
        (tmp_path / ".env").write_bytes((ROOT / ".env.example").read_bytes())
        assert made.config()["services"]["api"]["environment"]["OPENAI_API_KEY"] == ""
        example = example_of_env()
        made.write_env("".join(f"{k}={v}\r\n" for k, v in example.items()))
        api = made.config()["services"]["api"]
    seen = api["environment"] | api["build"]["args"]
    assert {name: str(seen[name]) for name in example} == example


def test_the_grace_of_a_stop_is_longer_than_that_of_the_server(local: Project) -> None:
    grace = local.inspect("api")["Config"]["StopTimeout"]
    assert grace > ServerSettings().shutdown_seconds
