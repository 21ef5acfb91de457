"""Alembic's entry: runs the migrations on the connection that `services.api.storage.database.migrate` hands over."""

from alembic import context

from services.api.storage.database import Base

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Run migrations through services.api.storage.database.migrate; it brings the connection.")
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
