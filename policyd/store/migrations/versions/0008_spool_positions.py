"""How far each file of a spool has been shipped."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "spool_positions",
        sa.Column("spool", sa.String(32), primary_key=True),
        sa.Column("file", sa.String(64), primary_key=True),
        sa.Column("shipped", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
    )
