"""The log's size in several rows, so that no transaction waits for another one's count."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "log_sizes",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("decisions", sa.BigInteger, nullable=False),
    )
