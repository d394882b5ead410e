"""The administrator of the console."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    administrator = op.create_table(
        "administrator",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("password_hash", sa.String(300), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
    )
    # Random, so that sessions of another database with the same token are not valid here.
    epoch = secrets.randbits(48)
    op.bulk_insert(administrator, [{"id": 1, "password_hash": "", "epoch": epoch}])
