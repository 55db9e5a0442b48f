"""The Alembic environment that every module's history runs in.

`core.migrate` hands over an open connection and says which tables are the module's own.
"""

from typing import Any

from alembic import context

from core.db import Base

given = context.config.attributes


def is_own(name: str | None, kind: str, parents: Any) -> bool:
    """Whether a name found in the database concerns this module."""
    return kind != "table" or given["owns"](name)


def is_own_object(thing: Any, name: str | None, kind: str, *rest: Any) -> bool:
    """Whether an object of the models or the database concerns this module."""
    return is_own(name, kind, None)


context.configure(
    connection=given["connection"],
    target_metadata=Base.metadata,
    version_table=given["version_table"],
    include_name=is_own,
    include_object=is_own_object,
    process_revision_directives=given.get("process_revision_directives"),
    render_as_batch=True,
    transactional_ddl=True,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
