"""Rotation and expiry of keys, the server's defaults, and what administrators did.

The previous version runs on beside this form, but follows none of these: for its workers a key's
former secret and an expired key stay in force, and the defaults are those of its own settings. So
such changes are refused while a worker of that version runs: workers note their form from now on.
"""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

from policyd.errors import StoreUnusable

revision = "0012"
down_revision = "0011"

_NEW = ("previous_digest", "previous_until", "expires_at", "suffix")


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.add_column("api_keys", sa.Column("previous_digest", sa.LargeBinary(32)))
    op.add_column("api_keys", sa.Column("previous_until", time))
    op.add_column("api_keys", sa.Column("expires_at", time))
    suffix = sa.Column("suffix", sa.String(4), nullable=False, server_default="")
    op.add_column("api_keys", suffix)
    op.create_index("ix_api_keys_name", "api_keys", ["name"])
    op.create_index("ix_api_keys_previous", "api_keys", ["previous_digest"], unique=True)
    op.add_column("workers", sa.Column("form", sa.String(32)))
    op.create_table(
        "server_defaults",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("policies", sa.Text, nullable=False),
        sa.Column("end_user_headers", sa.Text, nullable=False),
        sa.Column("end_user_callers", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    # downgrade() keeps these three tables.
    if not sa.inspect(op.get_bind()).has_table("audit_records"):
        _trail()


def _trail() -> None:
    op.create_table(
        "ended_digests",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_ended_digests_revision", "ended_digests", ["revision"])
    op.create_table(
        "audit_records",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("key_name", sa.String(200), nullable=False),
        sa.Column("before", sa.Text, nullable=False),
        sa.Column("after", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_audit_records_key", "audit_records", ["key_id", "id"])
    op.create_index("ix_audit_records_action", "audit_records", ["action", "id"])
    count = op.create_table(
        "audit_count",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(count, [{"id": 1, "value": 0}])


def downgrade() -> None:
    """Back to the previous form. The audit trail stays.

    Keys that have expired are revoked, as they would be in force again. Raises StoreUnusable where
    keys are yet to expire, or defaults were applied, unless the attribute `force` of Alembic's
    configuration is true.
    """
    context = op.get_context()
    assert context.config
    _revoke_expired(op.get_bind())
    if not context.config.attributes.get("force"):
        _check(op.get_bind())
    op.drop_table("server_defaults")
    op.drop_column("workers", "form")
    op.drop_index("ix_api_keys_previous", "api_keys")
    op.drop_index("ix_api_keys_name", "api_keys")
    for name in _NEW:
        op.drop_column("api_keys", name)


_keys = sa.table(
    "api_keys",
    sa.column("id"),
    sa.column("expires_at", sa.DateTime(timezone=True)),
    sa.column("revoked_at", sa.DateTime(timezone=True)),
    sa.column("revision", sa.BigInteger),
)


def _revoke_expired(connection: sa.Connection) -> None:
    now = datetime.now(UTC)
    count = sa.table("revision", sa.column("value", sa.BigInteger))
    connection.execute(sa.update(count).values(value=count.c.value + 1))
    revision = connection.execute(sa.select(count.c.value)).scalar_one()
    expired = sa.update(_keys).where(_keys.c.expires_at <= now, _keys.c.revoked_at.is_(None))
    connection.execute(expired.values(revoked_at=now, revision=revision))


def _check(connection: sa.Connection) -> None:
    query = sa.select(_keys.c.id).where(
        _keys.c.expires_at.is_not(None), _keys.c.revoked_at.is_(None)
    )
    found = list(connection.execute(query.order_by(_keys.c.id)).scalars())
    if found:
        some = ", ".join(found[:5]) + (" …" if len(found) > 5 else "")
        raise StoreUnusable(
            f"{len(found)} keys are yet to expire, and would stay in force for ever in the form "
            f"{down_revision} ({some}): revoke them first, or force it"
        )
    if connection.execute(sa.text("SELECT 1 FROM server_defaults")).first():
        raise StoreUnusable(
            f"defaults were applied, which the form {down_revision} has no place for: set them in "
            "the settings of each server, then force it, which drops them"
        )
