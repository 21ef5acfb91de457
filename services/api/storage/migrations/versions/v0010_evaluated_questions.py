"""Questions of runs' own evaluations, and samples of other evaluations."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("evaluations", sa.Column("questions", sa.JSON(), nullable=True))
    op.create_table(
        "evaluated_samples",
        sa.Column("evaluation_id", sa.String(length=64), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("samples", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("evaluation_id", "place", "number", name=op.f("pk_evaluated_samples")),
    )


def downgrade() -> None:
    op.drop_table("evaluated_samples")
    op.drop_column("evaluations", "questions")
