"""One table of the configuration, read as its owner's model.

References to variables and secrets in files are resolved on the way.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, RootModel, ValidationError

from core.layers import Finding, Keys, RawSettings, nearest

REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """A table of the configuration file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NamedTables(RootModel[dict[str, dict[str, Any]]]):
    """A section of tables with free names, left as written for its owner to read."""

    keeps_references: ClassVar[bool] = True


def _split(value: Any) -> Any:
    """Let the environment give a list as JSON or as words between commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return json.loads(value)
    return [word.strip() for word in value.split(",") if word.strip()]


Words = Annotated[tuple[str, ...], BeforeValidator(_split)]


def read_table(
    raw: RawSettings, path: Keys, kind: type[M]
) -> tuple[M | None, list[Finding]]:
    """Read one table as `kind`: references and secret files resolved, then checked."""
    findings: list[Finding] = []
    table = _at(raw, path)
    if not isinstance(table, dict):
        problem = "must be a table"
        return None, [Finding(raw.origin(*path), path[0], "", problem)]
    if not getattr(kind, "keeps_references", False):
        table, secrets = _read_secret_files(raw, path, table, kind, findings)
        # What a file holds is taken as it is, even if it looks like a reference.
        table = _resolve(raw, path, table, findings) | secrets
    if findings:
        return None, findings
    try:
        return kind.model_validate(table), []
    except ValidationError as exc:
        return None, [_finding(raw, path, kind, dict(error)) for error in exc.errors()]


def _at(raw: RawSettings, path: Keys) -> Any:
    found: Any = raw.tables
    for key in path:
        found = found.get(key, {})
    return found


def _read_secret_files(
    raw: RawSettings,
    path: Keys,
    table: dict[str, Any],
    kind: type[BaseModel],
    findings: list[Finding],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Any secret `x` may be given as `x_file`, the path of a file that holds it.

    Returns what is left of the table, and the secrets.
    """
    table, secrets = dict(table), {}
    for name, info in kind.model_fields.items():
        key = f"{name}_file"
        if "SecretStr" not in str(info.annotation) or key in kind.model_fields:
            continue
        file = table.pop(key, None)
        where = raw.origin(*path, key)
        value_layer = raw.layers.get((*path, name), -1)
        file_layer = raw.layers.get((*path, key), 0)
        if not file or value_layer > file_layer:
            continue
        if value_layer == file_layer:
            problem = f"{name} is given as well: one of them has to go"
            findings.append(Finding(where, ".".join(path), key, problem))
            continue
        table.pop(name, None)
        file = _resolve(raw, (*path, key), file, findings)
        try:
            secret = Path(str(file)).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            problem = "this file cannot be read"
            findings.append(Finding(where, ".".join(path), key, problem))
        else:
            secrets[name] = secret.rstrip("\r\n")
    return table, secrets


def _resolve(raw: RawSettings, path: Keys, value: Any, findings: list[Finding]) -> Any:
    """Put the variables' values in the place of `${NAME}`, at any depth."""
    if isinstance(value, dict):
        return {k: _resolve(raw, (*path, k), v, findings) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(raw, path, item, findings) for item in value]
    if not isinstance(value, str):
        return value

    def substitute(reference: re.Match[str]) -> str:
        name = reference[1]
        try:
            found = _variable(raw.environ, name)
        except (OSError, UnicodeDecodeError):
            found, is_unset = "", False
            problem = f"the file that {name}_FILE names cannot be read"
        else:
            is_unset = not found
            problem = f"the variable {name} is not set"
        if not found:
            place = (raw.origin(*path), ".".join(path[:-1]), path[-1])
            findings.append(Finding(*place, problem, is_unset=is_unset))
        return found

    return REFERENCE.sub(substitute, value)


def _variable(environ: Mapping[str, str], name: str) -> str:
    """A variable, or the content of the file that `NAME_FILE` names; empty is unset.

    Raises OSError or UnicodeDecodeError when that file cannot be read.
    """
    if value := environ.get(name, ""):
        return value
    if file := environ.get(f"{name}_FILE", ""):
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    return ""


def _finding(
    raw: RawSettings, path: Keys, kind: type[BaseModel], error: dict[str, Any]
) -> Finding:
    loc = [str(part) for part in error["loc"]]
    key = loc[0] if loc else ""
    where = raw.origin(*path, *loc)
    table = ".".join(path)
    if error["type"] == "extra_forbidden":
        hint = nearest(key, kind.model_fields)
        return Finding(where, table, key, "there is no such key", hint)
    if error["type"] == "missing":
        return Finding(where, table, key, "this key is needed")
    problem = str(error["msg"]).removeprefix("Value error, ")
    return Finding(where, table, key, problem[:1].lower() + problem[1:])
