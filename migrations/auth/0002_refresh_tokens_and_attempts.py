"""Let sessions be refreshed and told apart, and count what is tried."""

import sqlalchemy as sa
from alembic import op

from core.db import UtcDateTime, db_now

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("auth_sessions") as sessions:
        sessions.add_column(sa.Column("client", sa.String(200)))
        sessions.add_column(sa.Column("network_hash", sa.String(64)))
        sessions.create_check_constraint("client_length", "length(client) <= 200")
    op.create_index(None, "auth_sessions", ["expires_at"])
    op.create_index(None, "auth_sessions", ["user_id", "network_hash"])
    op.create_index(None, "auth_sessions", ["user_id", "created_at", "id"])
    # The one above does for it.
    op.drop_index(op.f("ix_auth_sessions_user_id"), "auth_sessions")
    op.create_table(
        "auth_refresh_tokens",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        sa.Column(
            "session_id",
            sa.Uuid,
            sa.ForeignKey("auth_sessions.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("issued_at", UtcDateTime, nullable=False, server_default=db_now()),
        sa.Column("used_at", UtcDateTime),
    )
    op.create_index(None, "auth_refresh_tokens", ["session_id"])
    op.create_index(
        "ix_auth_refresh_tokens_unused",
        "auth_refresh_tokens",
        ["session_id"],
        postgresql_where=sa.text("used_at IS NULL"),
        sqlite_where=sa.text("used_at IS NULL"),
    )
    op.create_table(
        "auth_login_attempts",
        sa.Column("key_hash", sa.String(64), primary_key=True),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("window_ends_at", UtcDateTime, nullable=False),
        sa.Column("blocked_until", UtcDateTime, nullable=False),
    )
    op.create_index(None, "auth_login_attempts", ["window_ends_at"])


def downgrade() -> None:
    op.drop_table("auth_login_attempts")
    op.drop_table("auth_refresh_tokens")
    op.create_index(None, "auth_sessions", ["user_id"])
    for columns in ("user_id_created_at_id", "user_id_network_hash", "expires_at"):
        op.drop_index(op.f(f"ix_auth_sessions_{columns}"), "auth_sessions")
    with op.batch_alter_table("auth_sessions") as sessions:
        sessions.drop_constraint("client_length", type_="check")
        sessions.drop_column("network_hash")
        sessions.drop_column("client")
