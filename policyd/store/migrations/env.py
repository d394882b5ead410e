"""Alembic runs this file, which gives it the connection from migrations.upgrade()."""

from alembic import context

from policyd.store.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
