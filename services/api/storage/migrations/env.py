"""Alembic's entry point: runs the migrations on the connection that `services.api.storage.database.migrate`
provides."""

from alembic import context

from services.api.storage.database import Base

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Run migrations through services.api.storage.database.migrate; it provides the connection.")
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
