"""Create users."""

import sqlalchemy as sa
from alembic import op

from core.db import BigId, UtcDateTime, db_now

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", BigId, sa.Identity(always=True), primary_key=True),
        sa.Column("username", sa.String(32), nullable=False),
        sa.Column("username_key", sa.String(32), nullable=False, unique=True),
        sa.Column("role", sa.String(16), nullable=False, server_default="user"),
        sa.Column("is_active", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("created_at", UtcDateTime, nullable=False, server_default=db_now()),
        sa.CheckConstraint("role IN ('user', 'admin')", name="role"),
        sa.CheckConstraint("length(username) BETWEEN 3 AND 32", name="username_length"),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    op.drop_table("users")
