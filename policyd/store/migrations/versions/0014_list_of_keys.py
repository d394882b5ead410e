"""Indexes along which the list of keys is read, whatever their number.

On PostgreSQL, schema.py has built them already, while servers write, unless the database is new.
"""

from alembic import op

from policyd.store.key_indexes import INDEXES

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    for name, columns in INDEXES.items():
        op.execute(f"CREATE INDEX IF NOT EXISTS {name} {columns}")


def downgrade() -> None:
    for name in INDEXES:
        op.execute(f"DROP INDEX IF EXISTS {name}")
