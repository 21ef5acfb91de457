"""The first tables: runs and their history."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INTEGER, FLOAT, TEXT, JSON = sa.Integer(), sa.Float(), sa.Text(), sa.JSON()
RUN_ID, INSTANCE = sa.String(64), sa.String(200)
SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TABLES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "checkpoints": (
        ["run_id", "step"],
        {"run_id": RUN_ID, "step": INTEGER, "at": FLOAT, "path": TEXT, "bytes": sa.BigInteger(), "seconds": FLOAT},
    ),
    "evaluations": (
        ["run_id", "step", "split", "num_samples"],
        {"run_id": RUN_ID, "step": INTEGER, "split": sa.String(100), "num_samples": INTEGER, "at": FLOAT}
        | {"num_questions": INTEGER, "accuracy": FLOAT, "pass_at_k": FLOAT, "accuracy_by_kind": JSON}
        | {"response_tokens_mean": FLOAT, "truncated_ratio": FLOAT, "num_faults": INTEGER, "seconds": FLOAT},
    ),
    "events": (
        ["id"],
        {"id": SERIAL, "run_id": RUN_ID, "key": sa.String(255), "type": sa.String(16), "at": FLOAT, "data": JSON},
    ),
    "runs": (
        ["id"],
        {"id": RUN_ID, "name": sa.String(100), "state": sa.String(16), "desired": sa.String(16), "reason": TEXT}
        | {"config": JSON, "created_at": FLOAT, "queued_at": FLOAT, "started_at": FLOAT, "finished_at": FLOAT}
        | {"step": INTEGER, "learner": INSTANCE, "learner_started_at": FLOAT, "learner_spoke_at": FLOAT}
        | {"learner_said": sa.String(16), "rollout_servers": JSON}
        | {"idempotency_key": sa.String(255), "request_digest": sa.String(64)},
    ),
    "samples": (
        ["run_id", "step", "group_id"],
        {"run_id": RUN_ID, "step": INTEGER, "group_id": INSTANCE, "at": FLOAT}
        | {"question_id": TEXT, "prompt": TEXT, "answer": TEXT, "samples": JSON},
    ),
    "steps": (
        ["run_id", "step"],
        {"run_id": RUN_ID, "step": INTEGER, "at": FLOAT, "metrics": JSON, "histograms": JSON, "groups": JSON},
    ),
    "weight_pushes": (
        ["id"],
        {"id": SERIAL, "run_id": RUN_ID, "version": INTEGER, "instance": INSTANCE}
        | {"at": FLOAT, "seconds": FLOAT, "error": TEXT},
    ),
}
"""Name to primary key and columns."""
NULLABLE = {"started_at", "finished_at", "learner", "learner_started_at", "learner_spoke_at", "idempotency_key"}
INDICES = [
    ("events", ["run_id", "id"], False),
    ("events", ["run_id", "key"], True),
    ("runs", ["created_at", "id"], False),
    ("runs", ["state"], False),
    ("weight_pushes", ["run_id", "version"], False),
]
"""Table, columns, whether it is unique."""


def upgrade() -> None:
    for name, (key, columns) in TABLES.items():
        unique = [sa.UniqueConstraint("idempotency_key", name=op.f("uq_runs_idempotency_key"))]
        op.create_table(
            name,
            *(sa.Column(column, kind, nullable=column in NULLABLE) for column, kind in columns.items()),
            sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{name}")),
            *(unique if name == "runs" else []),
        )
    for table, names, is_unique in INDICES:
        op.create_index(op.f(f"ix_{table}_{'_'.join(names)}"), table, names, unique=is_unique)


def downgrade() -> None:
    for name in TABLES:  # with their indices
        op.drop_table(name)
