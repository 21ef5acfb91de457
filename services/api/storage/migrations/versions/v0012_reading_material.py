"""What other teachers need to read the responses of sampled groups."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("samples", sa.Column("material", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("samples", "material")
