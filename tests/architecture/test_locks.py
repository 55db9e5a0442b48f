"""Advisory locks: each has a name and a number of its own."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType

import core
import modules
import providers
from core.locks import MIGRATION, AdvisoryLock
from core.module import ROOT

_TAKES = re.compile(r"pg_(try_)?advisory_")


def our_code() -> Iterator[ModuleType]:
    for package in (core, modules, providers):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                yield importlib.import_module(found.name)


def test_every_lock_has_a_name_and_a_number_of_its_own() -> None:
    found = {
        id(value): value
        for module in our_code()
        for value in vars(module).values()
        if isinstance(value, AdvisoryLock)
    }
    locks = list(found.values())
    assert MIGRATION in locks and len(locks) > 1
    assert len({lock.name for lock in locks}) == len(locks)
    assert len({lock.key for lock in locks}) == len(locks)


def test_the_number_of_a_lock_never_changes() -> None:
    """Servers of two releases that serve together must mean the same lock."""
    assert AdvisoryLock("a.test").key == 6796727744144235766
    assert all(-(2**63) <= AdvisoryLock(f"{n}").key < 2**63 for n in range(99))


def test_no_other_file_takes_an_advisory_lock() -> None:
    taking = [
        file.relative_to(ROOT).as_posix()
        for folder in ("core", "modules", "providers", "migrations")
        for file in (ROOT / folder).rglob("*.py")
        if _TAKES.search(file.read_text(encoding="utf-8"))
    ]
    assert taking == ["core/locks.py"]
