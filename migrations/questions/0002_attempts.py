"""Record who was asked for each answer."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("questions", sa.Column("attempts", sa.JSON))


def downgrade() -> None:
    op.drop_column("questions", "attempts")
