"""What docs/security.md names is there, and no requirement is passed over."""

import re
from collections import Counter
from pathlib import Path

import pytest

from core.settings import load_settings
from tests.conftest import Databases, served
from tests.support.config import write_config
from tests.support.markdown import ROOT

TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
# How many requirements of levels 1 and 2 each section of ASVS 5.0.0 has: they are the
# first ones of their section.
REQUIREMENTS = {
    **{"6.1": 3, "6.2": 12, "6.3": 4, "6.4": 4, "6.5": 5, "6.6": 3, "6.8": 4},
    **{"7.1": 3, "7.2": 4, "7.3": 2, "7.4": 5, "7.5": 2, "7.6": 2},
    **{"8.1": 2, "8.2": 3, "8.3": 1, "8.4": 1, "9.1": 3, "9.2": 4},
    **{"10.1": 2, "10.2": 2, "10.3": 4, "10.4": 11, "10.5": 5, "10.6": 2, "10.7": 3},
}
ROW = re.compile(r"^\| (\d+\.\d+\.\d+) \| (.+) \| (met|n/a|not met) \| (.+) \|$", re.M)
OPERATION = re.compile(r"`((?:GET|POST|PUT|PATCH|DELETE) /[^`]*)`")


def test_every_requirement_of_levels_1_and_2_has_one_row() -> None:
    assert [row[0] for row in ROW.findall(TEXT)] == [
        f"{section}.{number}"
        for section, count in REQUIREMENTS.items()
        for number in range(1, count + 1)
    ]
    assert len(re.findall(r"^\| \d+\.\d+", TEXT, re.M)) == sum(REQUIREMENTS.values())


def test_the_verdicts_are_summed_up_as_they_are() -> None:
    found = Counter(row[2] for row in ROW.findall(TEXT))
    told = re.search(
        r"Of the (\d+) requirements (\d+) are met,"
        r" (\d+) do not apply and (\d+) are not met",
        " ".join(TEXT.split()),
    )
    assert told is not None
    verdicts = [found["met"], found["n/a"], found["not met"]]
    assert [int(number) for number in told.groups()] == [sum(verdicts), *verdicts]


def test_every_test_that_the_document_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    files = (ROOT / "tests").rglob("test_*.py")
    written = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert len(named) > 50
    assert named <= set(re.findall(r"^(?:async )?def (test_\w+)\(", written, re.M))


def test_every_setting_that_the_document_names_exists(tmp_path: Path) -> None:
    file = write_config(tmp_path / "app.toml", "sqlite+aiosqlite:///x.db")
    sections = load_settings(file, {}).sections
    named = set(re.findall(r"`((?:auth|server)\.\w+)(?: = [^`]+)?`", TEXT))
    known = {
        f"{name}.{key}"
        for name in ("auth", "server")
        for key in type(sections[name]).model_fields
    }
    assert len(named) > 10
    assert named <= known


def test_the_values_that_the_document_gives_settings_are_accepted(
    tmp_path: Path,
) -> None:
    assigned = re.findall(r"`(auth|server)\.(\w+ = [^`]+)`", TEXT)
    assert assigned
    for table, line in assigned:
        tables = {table: line}
        file = write_config(tmp_path / "app.toml", "sqlite+aiosqlite:///x.db", **tables)
        load_settings(file, {})


async def test_who_may_do_what_is_told_of_every_operation(
    databases: Databases, tmp_path: Path
) -> None:
    url = await databases.migrated("sqlite")
    async with served(write_config(tmp_path / "app.toml", url)) as (_, api):
        made = (await api.get("/openapi.json")).json()["paths"]
    there = {f"{method.upper()} {path}" for path in made for method in made[path]}
    table = TEXT.split("\n### Who may do what\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| `([A-Z]+ /\S+)` \| ([^|]+) \|", table, re.M)
    assert sorted(operation for operation, _ in rows) == sorted(there)
    for operation, nobody in rows:
        method, path = operation.split()
        is_protected = bool(made[path][method.lower()]["security"])
        assert (nobody == "no") == is_protected, operation
    assert set(OPERATION.findall(TEXT)) <= there


@pytest.mark.parametrize("readme", ["README.md", "README.ru.md"])
def test_the_readmes_lead_to_the_document(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    assert "(docs/security.md)" in text


def test_what_the_document_refers_to_within_itself_is_there() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.M)
    anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors
