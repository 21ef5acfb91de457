"""Alembic's entry: runs the migrations on the connection that `services.api.database.migrate` hands over."""

from alembic import context

from services.api.database import Base
from services.api.history import models as history_models  # noqa: F401  tables register themselves
from services.api.keys import models as key_models  # noqa: F401
from services.api.runs import models as run_models  # noqa: F401

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Run migrations through services.api.database.migrate; it brings the connection.")
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
