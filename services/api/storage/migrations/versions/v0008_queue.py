"""Priorities, owners, tags and notes of runs."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("runs", sa.Column("created_by", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("runs", sa.Column("tags", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("runs", sa.Column("note", sa.Text(), nullable=False, server_default=""))
    op.add_column("experiments", sa.Column("created_by", sa.String(length=64), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("experiments", "created_by")
    for name in ("note", "tags", "created_by", "priority"):
        op.drop_column("runs", name)
