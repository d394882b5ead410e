"""PostgreSQL's index of flags, which the previous form dropped.

Partitions that have an index already keep it: schema.py builds these first, while servers write.
"""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE INDEX IF NOT EXISTS ix_decisions_flags ON decisions (flags, id) "
            "WHERE flags <> ''"
        )


def downgrade() -> None:
    pass
