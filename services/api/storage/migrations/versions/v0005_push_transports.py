"""The transport of a weight push."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("weight_pushes") as table:
        table.add_column(sa.Column("transport", sa.String(length=16), nullable=False, server_default="store"))


def downgrade() -> None:
    with op.batch_alter_table("weight_pushes") as table:
        table.drop_column("transport")
