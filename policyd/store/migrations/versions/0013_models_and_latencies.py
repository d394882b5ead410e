"""Counts of the log by model, and of how long requests took.

They begin with what is logged from now on: no row of the log is read. What the previous version
still logs is missing in them, and in nothing else.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_COUNTS = (
    *("requests", "denied", "would_deny", "attributed", "unattributed"),
    *("input_tokens", "output_tokens", "cost_nano"),
    *("flagged", "errors", "timed", "duration_us", "placeholders"),
)


def upgrade() -> None:
    op.create_table(
        "hourly_model_counts",
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("writer", sa.String(8), primary_key=True),
        sa.Column("model", sa.String(256), primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS),
    )
    op.create_table(
        "hourly_latencies",
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("writer", sa.String(8), primary_key=True),
        sa.Column("below_us", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    for name in ("hourly_model_counts", "hourly_latencies"):
        op.drop_table(name)
