"""Alembic runs this file: it gives the connection that migrations.upgrade() put in."""

from alembic import context

from policyd.store.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
