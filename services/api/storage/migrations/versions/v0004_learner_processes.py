"""Drop the time of the learner's last report: its record tells whether it has reported."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.drop_column("learner_spoke_at")


def downgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.add_column(sa.Column("learner_spoke_at", sa.Float(), nullable=True))
