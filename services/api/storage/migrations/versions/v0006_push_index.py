"""An index to read a run's newest weight pushes without sorting all of them."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index(op.f("ix_weight_pushes_run_id_version"), table_name="weight_pushes")
    op.create_index(op.f("ix_weight_pushes_run_id_id"), "weight_pushes", ["run_id", "id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_weight_pushes_run_id_id"), table_name="weight_pushes")
    op.create_index(op.f("ix_weight_pushes_run_id_version"), "weight_pushes", ["run_id", "version"])
