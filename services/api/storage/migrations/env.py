"""Alembic's entry: runs the migrations on the connection that `services.api.storage.database.migrate` hands over."""

from alembic import context

from services.api.storage.database import Base
from services.api.storage.tables import history as history_models  # noqa: F401  tables register themselves
from services.api.storage.tables import keys as key_models  # noqa: F401
from services.api.storage.tables import runs as run_models  # noqa: F401

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Run migrations through services.api.storage.database.migrate; it brings the connection.")
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
