"""Which versions can use a form, how far retention may go, and on PostgreSQL the log by days.

On PostgreSQL the log becomes a table of partitions. The present rows become one of them, so none is
rewritten. Where the constraint `decisions_before` is valid, none is read either.
"""

import re
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_DAYS = 8
"""Partitions that are made ahead."""
_OLD = "decisions_old"
_ID = re.compile("'([0-9a-f]{12})'")
"""A bound of IDs in a constraint, as PostgreSQL writes it."""


def upgrade() -> None:
    form = op.create_table(
        "schema_form",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("works_from", sa.String(32), nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
    )
    op.bulk_insert(form, [{"id": 1, "works_from": "0005", "reason": ""}])
    op.create_table(
        "log_retention",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("agreed_before", sa.DateTime(timezone=True)),
        sa.Column("agreed_rows", sa.BigInteger),
        sa.Column("seen_at", sa.DateTime(timezone=True)),
        sa.Column("waiting", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.String(500), nullable=False),
    )
    op.execute("INSERT INTO log_retention (id, waiting, reason) VALUES (1, 0, '')")
    if op.get_bind().dialect.name == "postgresql":
        _partition(op.get_bind())


def _partition(connection: sa.Connection) -> None:
    connection.exec_driver_sql("LOCK TABLE decisions IN ACCESS EXCLUSIVE MODE")
    bound = _bound(connection)
    indexes = _set_aside(connection)
    create = f"CREATE TABLE decisions (LIKE {_OLD} INCLUDING DEFAULTS INCLUDING STORAGE)"
    connection.exec_driver_sql(create + " PARTITION BY RANGE (id)")
    _same_rights(connection)
    connection.exec_driver_sql("ALTER TABLE decisions ADD PRIMARY KEY (id)")
    for definition in indexes:
        connection.exec_driver_sql(definition)
    attach = f"ALTER TABLE decisions ATTACH PARTITION {_OLD} FOR VALUES FROM (MINVALUE) TO "
    connection.exec_driver_sql(f"{attach}('{_first_id(bound)}')")
    connection.exec_driver_sql(f"ALTER TABLE {_OLD} DROP CONSTRAINT IF EXISTS decisions_before")
    connection.exec_driver_sql("CREATE TABLE decisions_default PARTITION OF decisions DEFAULT")
    for day in (bound + timedelta(days=n) for n in range(_DAYS)):
        first, last = _first_id(day), _first_id(day + timedelta(days=1))
        connection.exec_driver_sql(
            f"CREATE TABLE decisions_p{day:%Y%m%d} PARTITION OF decisions "
            f"FOR VALUES FROM ('{first}') TO ('{last}')"
        )


def _bound(connection: sa.Connection) -> datetime:
    """A midnight after which the log has no row: that of the constraint, if there is one."""
    checks = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = '{}' AND {}"
    query = checks.format("decisions_before", "conrelid = 'decisions'::regclass")
    check = connection.exec_driver_sql(query).scalar_one_or_none()
    if check and (found := _ID.search(check)):
        return datetime.fromtimestamp(int(found[1], 16) / 1000, UTC)
    at: datetime = connection.exec_driver_sql("SELECT clock_timestamp()").scalar_one()
    newest = connection.exec_driver_sql("SELECT max(id) FROM decisions").scalar_one()
    if newest:
        at = max(at, datetime.fromtimestamp(int(newest[:12], 16) / 1000, UTC))
    midnight = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight + timedelta(days=2)


def _first_id(day: datetime) -> str:
    return f"{int(day.timestamp() * 1000):012x}"


def _set_aside(connection: sa.Connection) -> list[str]:
    """Give the table and its indexes other names. Returns how to make the indexes again."""
    found = connection.exec_driver_sql(
        "SELECT indexname, indexdef FROM pg_indexes "
        "WHERE schemaname = current_schema() AND tablename = 'decisions' ORDER BY indexname"
    ).all()
    connection.exec_driver_sql(f"ALTER TABLE decisions RENAME TO {_OLD}")
    for name, _ in found:
        new = name.replace("decisions", _OLD)
        connection.exec_driver_sql(f"ALTER INDEX {name} RENAME TO {new}")
    return [definition for name, definition in found if name != "decisions_pkey"]


def _same_rights(connection: sa.Connection) -> None:
    """Let the roles that could use the old table use the new one."""
    owner = "SELECT quote_ident(tableowner) FROM pg_tables WHERE tablename = '{}' AND {}"
    query = owner.format(_OLD, "schemaname = current_schema()")
    named = connection.exec_driver_sql(query).scalar_one()
    connection.exec_driver_sql(f"ALTER TABLE decisions OWNER TO {named}")
    rights = connection.exec_driver_sql(
        "SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,"
        " privilege_type FROM pg_class, aclexplode(relacl)"
        " WHERE oid = 'decisions_old'::regclass AND grantee <> relowner"
    ).all()
    for grantee, right in rights:
        connection.exec_driver_sql(f"GRANT {right} ON decisions TO {grantee}")
