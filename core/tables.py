"""One table of the configuration, read as its owner's model.

References to variables and secrets in files are resolved on the way.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    RootModel,
    SecretStr,
    ValidationError,
)

from core.layers import Finding, Keys, RawSettings, closest, nearest, read_secret

if TYPE_CHECKING:
    from core.settings import Settings

REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
# Not closed, or as a shell would have it: taken as it is, it is sent as a key.
_ALMOST = re.compile(
    r"\$\{[A-Za-z_][A-Za-z0-9_]*(?![A-Za-z0-9_}])|^\$[A-Z][A-Z0-9_]{2,}$"
)
M = TypeVar("M", bound=BaseModel)


class Section(BaseModel):
    """A table of the configuration file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NamedTables(RootModel[dict[str, dict[str, Any]]]):
    """A section of tables with free names, left as written for its owner to read."""

    keeps_references: ClassVar[bool] = True

    def in_use(self, settings: "Settings") -> Mapping[str, BaseModel]:
        """The tables that a start needs, by name, as their owner reads them."""
        return {}

    @classmethod
    def kinds(cls, raw: RawSettings) -> Mapping[str, type[BaseModel]]:
        """What a table may be read as, by its `type`: as far as that is known."""
        return {}


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
    unread: set[str] = set()
    if not getattr(kind, "keeps_references", False):
        table = _resolve_table(raw, path, table, kind, findings, unread)
    try:
        read = kind.model_validate(table)
    except ValidationError as exc:
        findings += (
            _finding(raw, path, kind, dict(error))
            for error in exc.errors()
            if _is_due(dict(error), unread)
        )
    return (None, findings) if findings else (read, [])


def salvage(
    raw: RawSettings, name: str, kind: type[M], findings: Iterable[Finding]
) -> tuple[M | None, set[Keys]]:
    """Read a section again without what `findings` name, so that a check can go on.

    Returns also the paths of what is not known: there are only defaults in its place.
    The section is None when it has needs that nothing meets.
    """
    broken = {finding.path[-1] for finding in findings}
    if "" not in broken:
        rest = {k: v for k, v in _at(raw, (name,)).items() if k not in broken}
        read, _ = read_table(replace(raw, tables={name: rest}), (name,), kind)
        if read is not None:
            meant = {_meant(key, kind) for key in broken}
            return read, {(name, key) for key in broken | meant}
    read, _ = read_table(replace(raw, tables={}), (name,), kind)
    return read, {(name,)}


def _meant(key: str, kind: type[BaseModel]) -> str:
    """The field that a broken key sets, or was probably meant to set."""
    known = kind.model_fields
    key = key.removesuffix("_file") if key not in known else key
    return closest(key, known) or key


def _is_due(error: dict[str, Any], unread: Collection[str]) -> bool:
    """Whether an error stands even though the values of some keys are not known."""
    if not unread or error["type"] == "extra_forbidden":
        return True
    # Nothing can be said of those values, or of the whole.
    return bool(error["loc"]) and error["loc"][0] not in unread


def _at(raw: RawSettings, path: Keys) -> Any:
    found: Any = raw.tables
    for key in path:
        found = found.get(key, {})
    return found


def _resolve_table(
    raw: RawSettings,
    path: Keys,
    table: dict[str, Any],
    kind: type[BaseModel],
    findings: list[Finding],
    unread: set[str],
) -> dict[str, Any]:
    """The table with its references and secret files, and those of tables in lists.

    `unread` has the keys that failed.
    """
    lists: dict[str, Any] = {}
    for name in nested_tables(kind).keys() & table.keys():
        found: list[Finding] = []
        lists[name] = _resolve_list(raw, (*path, name), table[name], kind, found)
        if found:
            findings += found
            unread.add(name)
    plain = {key: value for key, value in table.items() if key not in lists}
    plain, secrets = _read_secret_files(raw, path, plain, kind, findings, unread)
    # What a file holds is taken as it is, even if it looks like a reference.
    return _resolve_keys(raw, path, plain, findings, unread) | secrets | lists


def _resolve_list(
    raw: RawSettings,
    path: Keys,
    value: Any,
    kind: type[BaseModel],
    findings: list[Finding],
) -> Any:
    """The tables of the list at `path`; anything else as it is, to be refused later."""
    if isinstance(value, str):
        value = _from_json(raw, path, value, findings)
    if not isinstance(value, list):
        return value
    below = nested_tables(kind)[path[-1]]
    return [
        (
            _resolve_table(raw, (*path, f"[{n}]"), item, below, findings, set())
            if isinstance(item, dict)
            else item
        )
        for n, item in enumerate(value)
    ]


def _from_json(raw: RawSettings, path: Keys, text: str, findings: list[Finding]) -> Any:
    """The environment, or a variable of it, gives a list of tables as JSON."""
    # References in the list itself wait: what they stand for may hold quotes.
    if not text.lstrip().startswith("["):
        text = _resolve(raw, path, text, findings)
    try:
        return json.loads(text) if text.strip() else []
    except (ValueError, RecursionError):
        return text


def _read_secret_files(
    raw: RawSettings,
    path: Keys,
    table: dict[str, Any],
    kind: type[BaseModel],
    findings: list[Finding],
    unread: set[str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Any secret `x` may be given as `x_file`, the path of a file that holds it.

    Returns what is left of the table, and the secrets; `unread` has those that failed.
    """
    table, secrets = dict(table), {}
    for name in secret_fields(kind):
        key = f"{name}_file"
        file = table.pop(key, None)
        place = (raw.origin(*path, key), *_told((*path, key)))
        value_layer = _layer(raw, (*path, name)) if name in table else -1
        file_layer = _layer(raw, (*path, key))
        if not file or value_layer > file_layer:
            continue
        if value_layer == file_layer:
            problem = f"{name} is given as well: one of them has to go"
            findings.append(Finding(*place, problem))
            continue
        table.pop(name, None)
        resolved = _resolve_keys(raw, path, {key: file}, findings, unread)
        if key in unread:
            unread.add(name)
            continue
        try:
            secret = read_secret(Path(str(resolved[key])))
        except (OSError, UnicodeDecodeError):
            problem = "this file cannot be read"
            findings.append(Finding(*place, problem))
            unread.add(name)
        else:
            secrets[name] = secret
    return table, secrets


def _layer(raw: RawSettings, path: Keys) -> int:
    """The layer of the value at `path`; in a list, that of the whole list."""
    above = (path[:end] for end in range(len(path), 0, -1))
    return next((raw.layers[keys] for keys in above if keys in raw.layers), 0)


def _told(path: Keys) -> tuple[str, str]:
    """The table and the key that people are told: `[auth] signing_keys[1].secret`."""
    in_list = (n for n, key in enumerate(path) if key.startswith("["))
    end = next(in_list, len(path)) - 1
    return ".".join(path[:end]), ".".join(path[end:]).replace(".[", "[")


def secret_fields(kind: type[BaseModel]) -> Collection[str]:
    """The fields that are one secret each, and so may be given as a file."""
    fields = kind.model_fields
    return [
        name
        for name, info in fields.items()
        if SecretStr in _alternatives(info.annotation) and f"{name}_file" not in fields
    ]


def nested_tables(kind: type[BaseModel]) -> Mapping[str, type[BaseModel]]:
    """The fields that are lists of tables, and as what each of those is read."""
    return {
        name: item
        for name, info in kind.model_fields.items()
        if get_origin(info.annotation) in (list, tuple)
        for item in get_args(info.annotation)
        if isinstance(item, type) and issubclass(item, BaseModel)
    }


def holds_secrets(annotation: Any) -> bool:
    """Whether a secret is anywhere in values of this type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.values()
        return any(holds_secrets(info.annotation) for info in fields)
    return annotation is SecretStr or any(map(holds_secrets, get_args(annotation)))


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    is_union = get_origin(annotation) in (Union, UnionType)
    return get_args(annotation) if is_union else (annotation,)


def _resolve_keys(
    raw: RawSettings,
    path: Keys,
    table: Mapping[str, Any],
    findings: list[Finding],
    unread: set[str],
) -> dict[str, Any]:
    """The table with its references resolved; `unread` has the keys that failed."""
    resolved: dict[str, Any] = {}
    for key, value in table.items():
        found: list[Finding] = []
        resolved[key] = _resolve(raw, (*path, key), value, found)
        if found:
            findings += found
            unread.add(key)
    return resolved


def _resolve(raw: RawSettings, path: Keys, value: Any, findings: list[Finding]) -> Any:
    """Put the variables' values in the place of `${NAME}`, at any depth."""
    if isinstance(value, dict):
        return {k: _resolve(raw, (*path, k), v, findings) for k, v in value.items()}
    if isinstance(value, list):
        items = enumerate(value)
        return [_resolve(raw, (*path, f"[{n}]"), item, findings) for n, item in items]
    if not isinstance(value, str):
        return value
    place = (raw.origin(*path), *_told(path))
    if _ALMOST.search(value):
        findings.append(Finding(*place, "looks like a variable: write ${NAME}"))
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
            findings.append(Finding(*place, problem, is_unset=is_unset))
        return found

    return REFERENCE.sub(substitute, value)


def _variable(environ: Mapping[str, str], name: str) -> str:
    """A variable, or the content of the file that `NAME_FILE` names; empty is unset.

    Raises OSError or UnicodeDecodeError when that file cannot be read.
    """
    # A line's end comes along when a file was read into the variable.
    if value := environ.get(name, "").rstrip("\r\n"):
        return value
    if file := environ.get(f"{name}_FILE", ""):
        return read_secret(Path(file))
    return ""


def _finding(
    raw: RawSettings, path: Keys, kind: type[BaseModel], error: dict[str, Any]
) -> Finding:
    loc = tuple(f"[{n}]" if isinstance(n, int) else str(n) for n in error["loc"])
    where = raw.origin(*path, *loc)
    shown = loc if loc and loc[0] in nested_tables(kind) else loc[:1]
    table, key = _told((*path, *shown)) if shown else (".".join(path), "")
    if error["type"] == "extra_forbidden":
        hint = nearest(shown[-1], _owner(kind, shown).model_fields)
        return Finding(where, table, key, "there is no such key", hint)
    if error["type"] == "missing":
        # Nobody gave it: that is for whoever gave the rest of its table to mend.
        where = raw.origin(*path, *loc[:-1])
        return Finding(where, table, key, "this key is needed")
    problem = str(error["msg"]).removeprefix("Value error, ")
    return Finding(where, table, key, problem[:1].lower() + problem[1:])


def _owner(kind: type[BaseModel], loc: Keys) -> type[BaseModel]:
    """The model whose key is at the end of `loc`."""
    for key in loc[:-1]:
        kind = nested_tables(kind).get(key, kind)
    return kind
