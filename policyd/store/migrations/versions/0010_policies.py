"""Settings of further policies on keys, and what the log keeps of a decision on them.

No row is rewritten. On PostgreSQL this drops the index of flags, which would be rebuilt under a
lock as the column becomes wider: the next form has it again.
"""

import sqlalchemy as sa
from alembic import op

from policyd.errors import StoreUnusable

revision = "0010"
down_revision = "0009"

_NUMBERS = ("token_limit", "prompt_chars")
_TEXTS = ("end_users", "header_overrides", "results")
_WIDER = (
    ("api_keys", "accept", 1000),
    ("decisions", "identifier", 128),
    ("decisions", "flags", 500),
)
"""Columns that become longer on PostgreSQL. SQLite does not bound texts."""


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP INDEX IF EXISTS ix_decisions_flags")
        for table, column, length in _WIDER:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} TYPE VARCHAR({length})")
    op.add_column("api_keys", sa.Column("policies", sa.Text, nullable=False, server_default="{}"))
    for name in _NUMBERS:
        op.add_column("decisions", sa.Column(name, sa.BigInteger))
    state = sa.Column("model_state", sa.SmallInteger, nullable=False, server_default="0")
    op.add_column("decisions", state)
    for name in _TEXTS:
        op.add_column("decisions", sa.Column(name, sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    """Back to the previous form. Columns that have become longer stay so.

    Raises StoreUnusable where keys have settings that the previous form cannot hold, unless the
    attribute `force` of Alembic's configuration is true.
    """
    context = op.get_context()
    assert context.config
    if not context.config.attributes.get("force"):
        _check_settings(op.get_bind())
    for name in (*_NUMBERS, "model_state", *_TEXTS):
        op.drop_column("decisions", name)
    op.drop_column("api_keys", "policies")


def _check_settings(connection: sa.Connection) -> None:
    keys = sa.table("api_keys", sa.column("id"), sa.column("policies"), sa.column("revoked_at"))
    query = sa.select(keys.c.id).where(keys.c.policies != "{}", keys.c.revoked_at.is_(None))
    found = list(connection.execute(query.order_by(keys.c.id)).scalars())
    if found:
        some = ", ".join(found[:5]) + (" …" if len(found) > 5 else "")
        raise StoreUnusable(
            f"{len(found)} keys have settings of policies that the form {down_revision} has no "
            f"place for ({some}): remove those settings first, or force it, which drops them"
        )
