"""A random epoch for each revision, and what workers tell of it and of their clocks.

A trigger writes the epoch, so that changes which the previous version makes have one, too.
"""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

# The epochs of the newest 10,000 revisions stay. A worker that is further behind reads all keys.
_SQLITE = """
CREATE TRIGGER revision_epoch AFTER UPDATE OF value ON revision
BEGIN
    INSERT OR REPLACE INTO revision_epochs (revision, epoch)
        VALUES (NEW.value, lower(hex(randomblob(16))));
    DELETE FROM revision_epochs WHERE revision <= NEW.value - 10000;
END
"""
_POSTGRESQL = (
    """
CREATE FUNCTION policyd_revision_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO revision_epochs (revision, epoch)
        VALUES (NEW.value, replace(gen_random_uuid()::text, '-', ''))
        ON CONFLICT (revision) DO UPDATE SET epoch = excluded.epoch;
    DELETE FROM revision_epochs WHERE revision <= NEW.value - 10000;
    RETURN NULL;
END
$$
""",
    """
CREATE TRIGGER revision_epoch AFTER UPDATE OF value ON revision
    FOR EACH ROW EXECUTE FUNCTION policyd_revision_epoch()
""",
)


def upgrade() -> None:
    epochs = op.create_table(
        "revision_epochs",
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.String(32), nullable=False),
    )
    connection = op.get_bind()
    count = sa.table("revision", sa.column("value", sa.BigInteger))
    now = connection.execute(sa.select(count.c.value)).scalar_one()
    op.bulk_insert(epochs, [{"revision": now, "epoch": secrets.token_hex(16)}])
    statements = _POSTGRESQL if connection.dialect.name == "postgresql" else (_SQLITE,)
    for statement in statements:
        connection.exec_driver_sql(statement)
    op.add_column("workers", sa.Column("epoch", sa.String(32)))
    op.add_column("workers", sa.Column("clock_offset_us", sa.BigInteger))
