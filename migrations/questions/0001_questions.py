"""Create questions."""

import sqlalchemy as sa
from alembic import op

from core.db import BigId, UtcDateTime, db_now

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATE = (
    "(status = 'pending' AND answer IS NULL AND answered_at IS NULL"
    " AND error_code IS NULL)"
    " OR (status = 'answered' AND answer IS NOT NULL AND answered_at IS NOT NULL"
    " AND error_code IS NULL)"
    " OR (status IN ('failed', 'interrupted') AND answered_at IS NULL"
    " AND error_code IS NOT NULL)"
)


def upgrade() -> None:
    op.create_table(
        "questions",
        sa.Column("id", BigId, sa.Identity(always=True), primary_key=True),
        sa.Column(
            "user_id",
            BigId,
            sa.ForeignKey("users.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False, server_default="pending"),
        sa.Column("answer", sa.Text),
        sa.Column("provider", sa.String(100)),
        sa.Column("model", sa.String(200)),
        sa.Column("prompt_tokens", sa.Integer),
        sa.Column("completion_tokens", sa.Integer),
        sa.Column("finish_reason", sa.String(16)),
        sa.Column("error_code", sa.String(64)),
        sa.Column("idempotency_key", sa.String(255), nullable=False),
        sa.Column("asked_at", UtcDateTime, nullable=False, server_default=db_now()),
        sa.Column("answered_at", UtcDateTime),
        sa.CheckConstraint(_STATE, name="state"),
        sa.CheckConstraint(
            "length(content) BETWEEN 1 AND 65536", name="content_length"
        ),
        sa.CheckConstraint("length(answer) <= 1048576", name="answer_length"),
        sa.CheckConstraint(
            "length(idempotency_key) BETWEEN 1 AND 255", name="idempotency_key_length"
        ),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_questions_user_id_id", "questions", ["user_id", sa.text("id DESC")]
    )
    op.create_index(
        "uq_questions_user_id_idempotency_key",
        "questions",
        ["user_id", "idempotency_key"],
        unique=True,
    )


def downgrade() -> None:
    op.drop_table("questions")
