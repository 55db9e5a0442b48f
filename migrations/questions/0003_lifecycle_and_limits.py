"""Give questions a deadline, clients' keys and limits, and lists their indexes."""

import sqlalchemy as sa
from alembic import op

from core.db import BigId, UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# SQLite rebuilds the table, and would give the numbers of deleted questions again.
_KEPT = {"sqlite_autoincrement": True}
_NEWEST_FIRST = (sa.text("asked_at DESC"), sa.text("id DESC"))
_UNANSWERED = "status = 'failed' OR status = 'interrupted' OR status = 'pending'"
_HAS_CLIENT_KEY = "client_key IS NOT NULL"


def upgrade() -> None:
    with op.batch_alter_table("questions", table_kwargs=_KEPT) as questions:
        questions.add_column(sa.Column("client_key", sa.String(255)))
        questions.add_column(sa.Column("fingerprint", sa.String(64)))
        questions.add_column(sa.Column("deadline_at", UtcDateTime))
        questions.create_check_constraint(
            "client_key_length", "length(client_key) BETWEEN 1 AND 255"
        )
        questions.create_check_constraint(
            "client_key_fingerprint", "(client_key IS NULL) = (fingerprint IS NULL)"
        )
    _index("user_id_asked_at", "user_id", *_NEWEST_FIRST)
    _index("asked_at", *_NEWEST_FIRST)
    _index("unanswered", "status", *_NEWEST_FIRST, only=_UNANSWERED)
    _index("unanswered_user_id", "status", "user_id", *_NEWEST_FIRST, only=_UNANSWERED)
    _index("user_id_client_key", "user_id", "client_key", only=_HAS_CLIENT_KEY)
    _index("client_key_asked_at", "asked_at", only=_HAS_CLIENT_KEY)
    op.drop_index(op.f("ix_questions_user_id_id"), "questions")
    op.create_table(
        "questions_usage",
        sa.Column(
            "user_id",
            BigId,
            sa.ForeignKey("users.id", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("questions", sa.Integer, nullable=False),
        sa.Column("tokens", BigId, nullable=False),
        sa.Column("minute_ends_at", UtcDateTime, nullable=False),
        sa.Column("minute_questions", sa.Integer, nullable=False),
    )
    op.create_table(
        "questions_budget",
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("questions", BigId, nullable=False),
        sa.Column("tokens", BigId, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("questions_budget")
    op.drop_table("questions_usage")
    op.create_index(
        "ix_questions_user_id_id", "questions", ["user_id", sa.text("id DESC")]
    )
    for name in (
        "ix_questions_client_key_asked_at",
        "uq_questions_user_id_client_key",
        "ix_questions_unanswered_user_id",
        "ix_questions_unanswered",
        "ix_questions_asked_at",
        "ix_questions_user_id_asked_at",
    ):
        op.drop_index(name, "questions")
    with op.batch_alter_table("questions", table_kwargs=_KEPT) as questions:
        questions.drop_constraint("client_key_fingerprint", type_="check")
        questions.drop_constraint("client_key_length", type_="check")
        questions.drop_column("deadline_at")
        questions.drop_column("fingerprint")
        questions.drop_column("client_key")


def _index(name: str, *columns: str | sa.TextClause, only: str = "") -> None:
    is_unique = name == "user_id_client_key"
    op.create_index(
        f"{'uq' if is_unique else 'ix'}_questions_{name}",
        "questions",
        columns,
        unique=is_unique,
        postgresql_where=sa.text(only) if only else None,
        sqlite_where=sa.text(only) if only else None,
    )
