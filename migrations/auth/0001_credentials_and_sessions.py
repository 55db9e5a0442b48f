"""Create credentials and sessions."""

import sqlalchemy as sa
from alembic import op

from core.db import BigId, UtcDateTime, db_now

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "auth_credentials",
        sa.Column(
            "user_id",
            BigId,
            sa.ForeignKey("users.id", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("changed_at", UtcDateTime, nullable=False, server_default=db_now()),
        sa.CheckConstraint("length(password_hash) <= 255", name="hash_length"),
    )
    op.create_table(
        "auth_sessions",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column(
            "user_id",
            BigId,
            sa.ForeignKey("users.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("created_at", UtcDateTime, nullable=False, server_default=db_now()),
        sa.Column("last_used_at", UtcDateTime, nullable=False, server_default=db_now()),
        sa.Column("expires_at", UtcDateTime, nullable=False),
        sa.Column("revoked_at", UtcDateTime),
    )
    op.create_index(None, "auth_sessions", ["user_id"])


def downgrade() -> None:
    op.drop_table("auth_sessions")
    op.drop_table("auth_credentials")
