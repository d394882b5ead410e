"""Alembic runs this file: it gives the connection that policyd.migrations.upgrade() put in."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
