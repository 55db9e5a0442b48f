"""`vopros config check`: every table is looked at, and with --live asked."""

import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.certificates import Authority
from tests.support.faults import SAID
from tests.support.process import vopros as run_vopros
from tests.support.strange_models import install
from tests.support.upstream import KEY, Received, Upstream, Wire, upstream_of_its_own

TLS_TROUBLE = "no TLS that can be trusted: its certificate, or no TLS at all"
ECHO = '[llm]\nprovider = "echo"\n[providers.echo]\ntype = "echo"\n'
SPARE = (
    '[providers.spare]\ntype = "openai"\nbase_url = "https://example.org/v1"\n'
    'model = "m"\napi_key = "${SPARE_KEY}"\n'
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "app.toml"


def check(file: Path, *options: str, **env: str) -> CompletedProcess[str]:
    done = run_vopros("--config", file, "config", "check", *options, env=env)
    assert "Traceback" not in done.stderr
    return done


def findings(file: Path, **env: str) -> list[str]:
    """The lines that refuse a configuration; none of them shows a value."""
    done = check(file, **env)
    assert done.returncode == 78, done.stdout
    assert KEY not in done.stdout + done.stderr
    lines = done.stderr.splitlines()
    place = re.compile(rf"vopros: {re.escape(str(file))}:\d+: ")
    assert all(map(place.match, lines)), lines
    return [place.sub("", line) for line in lines]


# Tables that nobody uses.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            f'{SPARE}api_kye = "{KEY}"',
            "[providers.spare] api_kye: there is no such key (did you mean 'api_key'?)",
        ),
        (
            SPARE.replace("api_key", "api_kye"),
            "[providers.spare] api_kye: there is no such key (did you mean 'api_key'?)",
        ),
        (
            f'{SPARE}max_concurrency = "{KEY}"',
            "[providers.spare] max_concurrency: input should be a valid integer, unable"
            " to parse string as an integer",
        ),
        (
            f'[providers.spare]\ntype = "openia"\napi_key = "{KEY}"',
            "[providers.spare] type: there is no such type of provider (did you mean"
            " 'openai'?)",
        ),
        (
            f'[providers.spare]\ntype = "openai"\nmodel = "m"\napi_key = "{KEY}"',
            "[providers.spare] base_url: this key is needed",
        ),
        (
            SPARE.replace("https:", "ftp:").replace("${SPARE_KEY}", KEY),
            "[providers.spare] base_url: must be an http:// or https:// address",
        ),
    ],
    ids=[
        "misspelt",
        "misspelt_and_unset",
        "wrong_type",
        "unknown_type",
        "missing",
        "inconsistent",
    ],
)
def test_a_mistake_in_a_table_that_is_not_in_use_is_found(
    file: Path, lines: str, told: str
) -> None:
    file.write_text(f"{ECHO}{lines}\n")
    assert findings(file) == [told]


def test_everything_wrong_is_told_at_once_and_nothing_twice(file: Path) -> None:
    used = f'[llm]\nprovider = "used"\n{SPARE.replace("spare", "used")}modle = "m"\n'
    file.write_text(f"{used}{SPARE}apikey = 1\nmax_waiting = -1\n")
    assert findings(file) == [
        "[providers.used] api_key: the variable SPARE_KEY is not set",
        "[providers.used] modle: there is no such key (did you mean 'model'?)",
        "[providers.spare] max_waiting: input should be greater than or equal to 0",
        "[providers.spare] apikey: there is no such key (did you mean 'api_key'?)",
    ]


def test_a_mistake_in_a_plain_table_does_not_hide_one_in_an_unused_provider(
    file: Path,
) -> None:
    file.write_text(f'[server]\nprot = 1\n{ECHO}{SPARE}proxy = "ftp://{KEY}"\n')
    assert findings(file) == [
        "[server] prot: there is no such key (did you mean 'port'?)",
        "[providers.spare] proxy: must be http, https, socks5, socks5h, with a host and"
        " a port",
    ]


@pytest.mark.slow
def test_a_variable_that_only_an_unused_table_needs_is_a_note(file: Path) -> None:
    file.write_text(ECHO + SPARE)
    done = check(file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{file}: nothing wrong",
        f"note: {file}:9: [providers.spare]: not usable yet: the variable SPARE_KEY is"
        " not set",
    ]
    assert check(file, SPARE_KEY=KEY).stdout == f"{file}: nothing wrong\n"


def test_a_needed_key_whose_variable_is_not_set_is_not_missing(file: Path) -> None:
    file.write_text(ECHO + SPARE.replace('"m"', '"${SPARE_MODEL}"'))
    done = check(file)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("SPARE_MODEL", "SPARE_KEY"):
        assert f"not usable yet: the variable {name} is not set" in done.stdout


@pytest.mark.slow
def test_a_word_of_auto_that_names_no_table_is_a_note(file: Path) -> None:
    auto = ECHO.replace('provider = "echo"', 'auto = ["ehco", "echo"]')
    file.write_text(auto)
    done = check(file)
    assert done.returncode == 0
    told = "[llm] auto: there is no [providers.ehco] (did you mean 'echo'?)"
    assert f"note: {file}:2: {told}" in done.stdout
    file.write_text(auto.replace('auto = ["ehco", "echo"]', ""))
    assert "note" not in check(file).stdout


@pytest.mark.slow
def test_a_broken_plugin_of_an_unused_table_is_found_by_the_check_alone(
    file: Path, tmp_path: Path
) -> None:
    (folder := tmp_path / "site").mkdir()
    witness = tmp_path / "imported"
    before = f"open({str(witness)!r}, 'w').close()\nraise RuntimeError({KEY!r})"
    install(folder, "broken", before=before)
    install(folder, "unnamed", distribution="other-models", before=before)
    url = f"sqlite+aiosqlite:///{tmp_path}/vopros.db"
    table = f'[database]\nurl = "{url}"\n[providers.guest]\ntype = "broken"\n'
    file.write_text(ECHO + table)
    env = {"PYTHONPATH": str(folder)}
    # What a start needs, it needs no less and no more.
    assert run_vopros("--config", file, "migrate", env=env).returncode == 0
    assert not witness.exists()
    (line,) = findings(file, **env)
    assert line == (
        "[providers.guest] type: plugin 'broken' of strange-models 1.2.3 cannot be"
        " loaded: RuntimeError (site/plugin_strange_models_broken.py:3)"
    )
    assert witness.exists()
    witness.unlink()
    file.write_text(ECHO)
    assert check(file, **env).returncode == 0
    assert not witness.exists()


# With --live.


def models(*names: str) -> str:
    return json.dumps({"object": "list", "data": [{"id": name} for name in names]})


def serving(body: str = "", status: str = "200 OK", **more: str) -> object:
    async def behave(wire: Wire, received: Received) -> None:
        assert received.head.startswith("GET /v1/models HTTP/1.1"), received.head
        assert received.header("authorization") == f"Bearer {KEY}"
        await wire.respond(body, status=status, **more)

    return behave


async def stalls(wire: Wire, received: Received) -> None:
    await wire.closed_by_client()


def table(name: str, base_url: str, more: str = "") -> str:
    return (
        f'[providers.{name}]\ntype = "openai"\nmodel = "m-1"\n'
        f'base_url = "{base_url}"\napi_key = "{KEY}"\n{more}\n'
    )


@asynccontextmanager
async def model_list(behaviour: object) -> AsyncIterator[Upstream]:
    async with upstream_of_its_own() as fake:
        fake.behaviour = behaviour  # type: ignore[assignment]
        yield fake


async def ask_live(
    file: Path, **env: str
) -> tuple[CompletedProcess[str], dict[str, list[str]]]:
    """Run the check beside this loop, which serves; the table's rows by their name."""
    import asyncio

    done = await asyncio.to_thread(lambda: check(file, "--live", **env))
    for secret in (KEY, SAID):
        assert secret not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    heading = next(n for n, line in enumerate(lines) if line.startswith("name "))
    rows = [re.split(r" {2,}", line) for line in lines[heading:]]
    assert rows[0] == ["name", "type", "model", "reachable", "ms", "trouble"]
    # Every column begins under its heading.
    for line in lines[heading + 1 :]:
        start = lines[heading].index("trouble")
        assert line[start - 1] == " " and line[start] != " "
    return done, {row[0]: row[1:] for row in rows[1:]}


async def test_live_asks_all_and_shows_what_it_found(
    file: Path, tmp_path: Path
) -> None:
    (folder := tmp_path / "site").mkdir()
    install(folder, "friendly")
    async with (
        model_list(serving(models("m-0", "m-1"))) as well,
        model_list(serving(models("m-0"))) as without,
        model_list(serving(models())) as silent,
    ):
        file.write_text(
            '[llm]\nprovider = "well"\nfallback = ["reserve"]\n'
            '[providers.reserve]\ntype = "friendly"\n'
            + table("without", without.base_url)
            + table("silent", silent.base_url)
            + table("well", well.base_url)
            + SPARE
        )
        done, rows = await ask_live(file, PYTHONPATH=str(folder))
        assert (done.returncode, done.stderr) == (0, "")
        asked = [fake.requests for fake in (well, without, silent)]
        assert [len(requests) for requests in asked] == [1, 1, 1]
    # Who is in use comes first, in the order of being asked.
    assert list(rows) == ["well", "reserve", "without", "silent", "spare"]
    for name, trouble in (("well", "-"), ("without", "model not offered")):
        kind, model, reachable, took, told = rows[name]
        assert (kind, model, reachable, told) == ("openai", "m-1", "yes", trouble)
        assert 0 <= int(took) < 5000
    assert rows["silent"][-1] == "-"
    unasked = ["not asked", "-", "cannot be asked for free"]
    assert rows["reserve"] == ["friendly", "-", *unasked]
    unset = "the variable SPARE_KEY is not set"
    assert rows["spare"] == ["openai", "m", "not asked", "-", unset]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("listed", "model"),
    [
        ("models/gemini-x", "gemini-x"),
        ("qwen:latest", "qwen"),
        ("org/large", "org/large"),
    ],
)
async def test_a_model_is_known_by_the_names_it_goes_by(
    file: Path, listed: str, model: str
) -> None:
    async with model_list(serving(models(listed))) as fake:
        written = table("main", fake.base_url).replace("m-1", model)
        file.write_text(f'[llm]\nprovider = "main"\n{written}')
        done, rows = await ask_live(file)
    assert (done.returncode, rows["main"][-1]) == (0, "-")


TROUBLES = {
    "refuses_the_key": (
        serving(json.dumps({"error": f"{SAID} {KEY}"}), "401 Unauthorized"),
        ("yes", "key not accepted", 1),
    ),
    "forbids": (serving(SAID, "403 Forbidden"), ("yes", "key not accepted", 1)),
    "has_no_list": (
        serving(SAID, "404 Not Found"),
        ("yes", "no list of models there: is base_url right?", 0),
    ),
    "fails": (
        serving(SAID, "500 Oh"),
        ("yes", "reports a failure of its own (HTTP 500)", 0),
    ),
    "is_overloaded": (serving(SAID, "503 Oh"), ("yes", "overloaded at the moment", 0)),
    "limits": (serving(SAID, "429 Oh"), ("yes", "asked too often at the moment", 0)),
    "is_a_web_page": (
        serving(f"<p>{SAID}</p>", content_type="text/html"),
        ("yes", "what it sends is no list of models", 0),
    ),
    "is_no_list": (
        serving(json.dumps({"data": [SAID]})),
        ("yes", "what it sends is no list of models", 0),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TROUBLES)
async def test_live_says_what_is_wrong_in_our_own_words(file: Path, name: str) -> None:
    behaviour, (reachable, trouble, code) = TROUBLES[name]
    async with model_list(behaviour) as fake:
        main = table("main", fake.base_url)
        file.write_text(f'[llm]\nprovider = "main"\n{main}')
        done, rows = await ask_live(file)
        assert rows["main"][2:] == [reachable, "-", trouble]
        assert done.returncode == code
        told = f"vopros: provider 'main' is in use: {trouble}\n"
        assert done.stderr == (told if code else "")
        # It fails only what is in use, be it in reserve.
        file.write_text(ECHO + main)
        done, _ = await ask_live(file)
        assert (done.returncode, done.stderr) == (0, "")
        done, _ = await ask_live(file, VOPROS_LLM__FALLBACK="main")
        assert done.returncode == code


async def test_U01_U21_live_tells_what_cannot_be_reached_or_trusted(
    file: Path, tmp_path: Path
) -> None:
    tls = Authority(tmp_path).issue("IP:127.0.0.1")
    async with upstream_of_its_own(tls) as untrusted:
        file.write_text(
            '[llm]\nprovider = "gone"\nfallback = ["untrusted"]\n'
            + table("gone", "http://127.0.0.1:9/v1")
            + table("untrusted", untrusted.base_url)
            + table("nowhere", "https://model.invalid/v1")
            + table("proxied", "https://a.invalid/v1", 'proxy = "http://127.0.0.1:9"')
        )
        done, rows = await ask_live(file)
    troubles = {name: (row[2], row[4]) for name, row in rows.items()}
    unreachable = ("no", "cannot be reached")
    assert troubles == {
        "gone": unreachable,
        "untrusted": ("no", TLS_TROUBLE),
        "nowhere": unreachable,
        "proxied": unreachable,
    }
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "vopros: provider 'gone' is in use: cannot be reached",
        f"vopros: provider 'untrusted' is in use: {TLS_TROUBLE}",
    ]


@pytest.mark.slow
async def test_U02_live_waits_a_few_seconds_for_all_together(file: Path) -> None:
    waiting: Counter[str] = Counter()

    async def stalls_with_others(wire: Wire, received: Received) -> None:
        waiting["now"] += 1
        waiting["most"] = max(waiting["most"], waiting["now"])
        await wire.closed_by_client()
        waiting["now"] -= 1

    async with (
        model_list(stalls_with_others) as one,
        model_list(stalls_with_others) as other,
    ):
        silent = {f"s{n}": (one, other)[n % 2] for n in range(6)}
        tables = [table(name, fake.base_url) for name, fake in silent.items()]
        file.write_text('[llm]\nprovider = "s0"\n' + "".join(tables))
        done, rows = await ask_live(file)
    assert {row[-1] for row in rows.values()} == {"timeout: no answer in 5 s"}
    assert done.returncode == 1
    assert waiting["most"] == 6


@pytest.mark.slow
async def test_live_of_auto_fails_for_the_one_it_would_choose_only(file: Path) -> None:
    async with model_list(serving(SAID, "401 No")) as refusing:
        auto = '[llm]\nauto = ["unset", "shut", "main", "echo"]\n'
        # The file itself holds no certificates, of course.
        shut = table("shut", "http://127.0.0.1:9/v1", f'ca_file = "{file}"')
        unset = SPARE.replace("spare", "unset")
        main, echo = table("main", refusing.base_url), ECHO.partition("\n[p")[2]
        file.write_text(f"{auto}{shut}{unset}{main}[p{echo}")
        done, rows = await ask_live(file)
        assert next(iter(rows)) == "main"
        assert rows["shut"][-1] == "ca_file holds no certificates in PEM"
        assert done.stderr == "vopros: provider 'main' is in use: key not accepted\n"
        assert done.returncode == 1

        echo_first = {"VOPROS_LLM__AUTO": "unset,shut,echo,main"}
        done, rows = await ask_live(file, **echo_first)
        assert next(iter(rows)) == "echo"
        assert (done.returncode, done.stderr) == (0, "")

        done, rows = await ask_live(file, VOPROS_LLM__AUTO="unset,shut")
        assert done.returncode == 1
        told = "vopros: provider 'shut' is in use: ca_file holds no certificates in PEM"
        assert done.stderr == f"{told}\n"


STRANGE = """\
    async def stream(self, request):
        yield Delta("never asked")

    async def models(self):
        {body}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise ValueError(self.key)", "its plugin failed"),
        ("raise SystemExit(self.key)", "its plugin failed"),
        ("import asyncio; raise asyncio.CancelledError", "its plugin failed"),
        ("return 7", "its plugin failed"),
        ("raise ProviderAuth(self.key)", "key not accepted"),
        ("raise ProviderRejected(self.key)", "what it sends is no list of models"),
        ("import asyncio; await asyncio.sleep(60)", "timeout: no answer in 5 s"),
        ("return ('a', 'b')", "-"),
    ],
)
async def test_F44_live_survives_whatever_a_plugin_does(
    file: Path, tmp_path: Path, body: str, told: str
) -> None:
    (folder := tmp_path / "site").mkdir()
    install(folder, "strange", stream=STRANGE.format(body=body))
    table = f'[providers.guest]\ntype = "strange"\napi_key = "{KEY}"\n'
    file.write_text(f'[llm]\nprovider = "guest"\n{table}')
    done, rows = await ask_live(file, PYTHONPATH=str(folder))
    assert rows["guest"][-1] == told
    assert done.returncode == (0 if told in ("-",) or "list" in told else 1)


async def test_live_comes_after_what_is_wrong_without_asking(file: Path) -> None:
    async with model_list(serving(models("m-1"))) as fake:
        main = table("main", fake.base_url, "max_waitng = 1")
        file.write_text(ECHO + main)
        done = check(file, "--live")
        assert (done.returncode, fake.requests) == (78, [])
        assert done.stdout == ""
