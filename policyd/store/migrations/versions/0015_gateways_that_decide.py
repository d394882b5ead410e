"""Gateways that decide by themselves stand beside the workers that they follow.

The previous version takes them for workers; it only counts them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    kind = sa.Column("kind", sa.String(16), nullable=False, server_default="worker")
    op.add_column("workers", kind)


def downgrade() -> None:
    """Back to the previous form. Gateways are deleted, as they would count as workers; those that
    still run are noted again."""
    op.execute("DELETE FROM workers WHERE kind = 'gateway'")
    op.drop_column("workers", "kind")
