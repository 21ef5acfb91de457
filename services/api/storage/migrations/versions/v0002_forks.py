"""The run and step that a fork started from."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.add_column(sa.Column("forked_from_run", sa.String(length=64), nullable=True))
        table.add_column(sa.Column("forked_from_step", sa.Integer(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.drop_column("forked_from_step")
        table.drop_column("forked_from_run")
