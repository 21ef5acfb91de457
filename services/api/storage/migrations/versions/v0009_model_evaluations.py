"""Evaluations of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model_evaluations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("of_run", sa.String(length=64), nullable=True),
        sa.Column("of_step", sa.Integer(), nullable=True),
        sa.Column("weights", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("rollout_servers", sa.JSON(), nullable=False),
        sa.Column("num_questions", sa.Integer(), nullable=True),
        sa.Column("num_done", sa.Integer(), nullable=False),
        sa.Column("results", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("queued_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("request_digest", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_evaluations")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_model_evaluations_idempotency_key")),
    )
    op.create_index(op.f("ix_model_evaluations_created_at_id"), "model_evaluations", ["created_at", "id"])
    op.create_index(op.f("ix_model_evaluations_of_run"), "model_evaluations", ["of_run"])
    op.create_index(op.f("ix_model_evaluations_state"), "model_evaluations", ["state"])
    op.create_table(
        "evaluated_questions",
        sa.Column("evaluation_id", sa.String(length=64), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("set", sa.String(length=100), nullable=False),
        sa.Column("question_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("num_samples", sa.Integer(), nullable=False),
        sa.Column("num_correct", sa.Integer(), nullable=False),
        sa.Column("num_truncated", sa.Integer(), nullable=False),
        sa.Column("num_faults", sa.Integer(), nullable=False),
        sa.Column("response_tokens", sa.BigInteger(), nullable=False),
        sa.Column("fault", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("evaluation_id", "place", "number", name=op.f("pk_evaluated_questions")),
    )


def downgrade() -> None:
    op.drop_table("evaluated_questions")
    op.drop_table("model_evaluations")
