"""The configuration file as a JSON Schema: editors complete it, and see mistakes."""

import ast
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from core.layers import RawSettings
from core.module import Module, known_modules
from core.settings import CORE_SECTIONS
from core.tables import REFERENCE, NamedTables, nested_tables, secret_fields

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE = {
    "type": "string",
    "pattern": f"^{REFERENCE.pattern}$",
    "description": "The value of a variable of the environment.",
}
# What an editor shows of a key, whatever its value may be.
_TOLD = ("description", "default", "examples", "deprecated")


def file_schema(raw: RawSettings, enabled: Iterable[Module]) -> Schema:
    """The schema of the whole file, with the tables of disabled modules too."""
    kinds: dict[str, type[BaseModel]] = dict(CORE_SECTIONS)
    for module in known_modules(enabled):
        kinds.update(module.sections)
    defs: dict[str, Schema] = {}
    sections = {name: _section(raw, name, kind, defs) for name, kind in kinds.items()}
    return {
        "$schema": _DIALECT,
        "title": "Configuration of Vopros",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
        "$defs": defs,
    }


def _section(
    raw: RawSettings, name: str, kind: type[BaseModel], defs: dict[str, Schema]
) -> Schema:
    if not issubclass(kind, NamedTables):
        return _table(name, kind, defs)
    types = kind.kinds(raw)
    for word, below in types.items():
        table = _table(f"{name}.{word}", below, defs)
        table["properties"]["type"] = {"const": word} | _told(table, "type")
        defs[f"{name}.{word}"] = table
    tables: Schema = {"type": "object"}
    if types:
        tables["oneOf"] = [{"$ref": f"#/$defs/{name}.{word}"} for word in types]
    described = inspect.getdoc(kind) or ""
    return {
        "type": "object",
        "description": described,
        "additionalProperties": tables,
    }


def _told(table: Schema, key: str) -> Schema:
    given = table["properties"].get(key, {})
    return {word: given[word] for word in _TOLD if word in given}


def _table(name: str, kind: type[BaseModel], defs: dict[str, Schema]) -> Schema:
    """One table as its model reads it: references allowed, secrets also in files."""
    made = kind.model_json_schema(
        ref_template=f"#/$defs/{name}.{{model}}", schema_generator=_Generator
    )
    for below, schema in made.pop("$defs", {}).items():
        defs[f"{name}.{below}"] = schema
    for item in nested_tables(kind).values():
        defs[f"{name}.{item.__name__}"] = _table(name, item, defs)
    told = _descriptions(kind)
    secrets = secret_fields(kind)
    properties: Schema = {}
    for key, schema in made.get("properties", {}).items():
        described = {"description": told[key]} if key in told else {}
        properties[key] = _value({**described, **schema})
        if key in secrets:
            # Its default is no secret, but it would be shown as one.
            properties[key].pop("default", None)
            described = {"description": f"A file that holds {key}, in its place."}
            properties[f"{key}_file"] = {"type": "string"} | described
    table = made | {"properties": properties}
    table["required"] = [key for key in made.get("required", ()) if key not in secrets]
    table.pop("title", None)
    return table


def _value(schema: Schema) -> Schema:
    """What may stand behind a key: the file has no null, but may name a variable."""
    told = {word: schema[word] for word in _TOLD if schema.get(word) is not None}
    rest = {k: v for k, v in schema.items() if k not in (*_TOLD, "title")}
    choices = [one for one in rest.pop("anyOf", [rest]) if one != {"type": "null"}]
    if not any(map(_takes_any_text, choices)):
        choices.append(_REFERENCE)
    return told | (choices[0] if len(choices) == 1 else {"anyOf": choices})


def _takes_any_text(schema: Schema) -> bool:
    limits = ("enum", "const", "pattern", "maxLength")
    is_text = schema.get("type") == "string" or not schema
    return is_text and not any(limit in schema for limit in limits)


def _descriptions(kind: type[BaseModel]) -> Mapping[str, str]:
    """The docstrings under a model's fields. Read only here: it takes its source."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        try:
            source = textwrap.dedent(inspect.getsource(owner))
            (body,) = ast.parse(source).body
        except (OSError, TypeError, SyntaxError, ValueError):
            continue  # a class without a source, or one that nobody can find in it
        if isinstance(body, ast.ClassDef):
            found |= _documented(body.body)
    return found


def _documented(body: list[ast.stmt]) -> dict[str, str]:
    found: dict[str, str] = {}
    for field, below in pairwise(body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = " ".join(text.split())
    return found


class _Generator(GenerateJsonSchema):
    """Says of a stranger's odd types that anything may be there, instead of failing."""

    def emit_warning(self, kind: Any, detail: str) -> None:
        """Whoever wrote that default does not read this."""

    def handle_invalid_for_json_schema(
        self, schema: Any, error_info: str
    ) -> JsonSchemaValue:
        return {}
