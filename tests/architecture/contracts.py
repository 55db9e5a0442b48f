"""Who may import whom, made from the folders under `modules/` when the check runs.

Written down by hand, adding a module would mean editing a shared file. Run it as
`python -m tests.architecture.contracts [ROOT]`; it exits with 1 for a crossed border.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
_REQUIRES = re.compile(r"requires=\(([^)]*)\)")


def contracts(root: Path) -> str:
    """The import-linter configuration for the tree at `root`."""
    modules = sorted(found.parent.name for found in root.glob("modules/*/__init__.py"))
    sections = [
        "[importlinter]\nroot_packages =\n    core\n    modules\n    providers\n"
        "include_external_packages = True",
        _section("layers", "modules above providers above core", "layers")
        + _list("layers", "modules", "providers", "core"),
        _section("http", "only providers speak HTTP to others", "forbidden")
        + _list("source_modules", "core", "modules")
        + _list("forbidden_modules", "aiohttp"),
        _protected("providers", "providers", "modules.**"),
    ]
    for module in modules:
        sections.append(_protected(module, f"modules.{module}", "modules.**"))
        sections.append(_inside(module))
        sections += _only_required(root, module, [*modules, "providers"])
    return "\n\n".join(sections) + "\n"


def _section(name: str, title: str, kind: str) -> str:
    return f"[importlinter:contract:{name}]\nname = {title}\ntype = {kind}\n"


def _list(key: str, *values: str) -> str:
    return f"{key} =\n" + "".join(f"    {value}\n" for value in values)


def _protected(name: str, package: str, others: str) -> str:
    """Everything in a package is its own business, but for its `public`."""
    return (
        _section(f"protect-{name}", f"{name} shows only its public", "protected")
        + _list("protected_modules", f"{package}.*")
        + _list("allowed_importers", package)
        + _list("ignore_imports", f"{others} -> {package}.public")
        + "unmatched_ignore_imports_alerting = none\n"
    )


def _inside(module: str) -> str:
    layers = (
        "(module)",
        "(router) | (commands)",
        "(schemas) | (service)",
        "(repository)",
        "(models) | (settings)",
        "(public)",
    )
    return (
        _section(f"inside-{module}", f"the layers inside {module}", "layers")
        + _list("layers", *layers)
        + _list("containers", f"modules.{module}")
    )


def _only_required(root: Path, module: str, others: list[str]) -> list[str]:
    text = (root / "modules" / module / "module.py").read_text(encoding="utf-8")
    found = _REQUIRES.search(text)
    required = re.findall(r'"([^"]+)"', found[1]) if found else []
    foreign = [
        other if other == "providers" else f"modules.{other}"
        for other in others
        if other != module and other not in required
    ]
    if not foreign:
        return []
    return [
        _section(
            f"required-{module}", f"{module} imports what it requires", "forbidden"
        )
        + _list("source_modules", f"modules.{module}")
        + _list("forbidden_modules", *foreign)
        + "allow_indirect_imports = True\n"
    ]


def check(root: Path = HERE) -> int:
    """Run import-linter on the tree at `root`; 0 when every border holds."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "contracts.ini"
        config.write_text(contracts(root), encoding="utf-8")
        program = Path(sys.executable).with_name("lint-imports")
        command = [str(program), "--config", str(config), "--no-cache"]
        return subprocess.run(command, cwd=root, check=False).returncode


if __name__ == "__main__":
    sys.exit(check(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE))
