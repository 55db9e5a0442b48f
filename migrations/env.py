"""The Alembic environment that every module's history runs in.

`core.migrate` hands over an open connection and says which tables are the module's own.
"""

from typing import Any, Literal

from alembic import context

from core.db import Base, BigId, UtcDateTime, db_now

given = context.config.attributes


def is_own(name: str | None, kind: str, parents: Any) -> bool:
    """Whether a name found in the database concerns this module."""
    return kind != "table" or given["owns"](name)


def is_own_object(thing: Any, name: str | None, kind: str, *rest: Any) -> bool:
    """Whether an object of the models or the database concerns this module."""
    return is_own(name, kind, None)


def rendered(kind: str, thing: Any, autogenerate: Any) -> str | Literal[False]:
    """Our own types and defaults, as a person would write them in a migration."""
    if kind == "type" and thing is BigId:
        name = "BigId"
    elif kind == "type" and isinstance(thing, UtcDateTime):
        name = "UtcDateTime"
    elif kind == "server_default" and isinstance(getattr(thing, "arg", None), db_now):
        name = "db_now"
    else:
        return False
    autogenerate.imports.add(f"from core.db import {name}")
    return f"{name}()" if name == "db_now" else name


context.configure(
    connection=given["connection"],
    target_metadata=Base.metadata,
    version_table=given["version_table"],
    include_name=is_own,
    include_object=is_own_object,
    process_revision_directives=given.get("process_revision_directives"),
    render_item=rendered,
    render_as_batch=True,
    transactional_ddl=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
