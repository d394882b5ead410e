"""The decision log, its counts, the workers, and what tells one database from another."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ID = sa.String(32).with_variant(sa.String(32, collation="C"), "postgresql")
_DECISION_TEXTS = {
    "key_id": 32,
    "operation": 32,
    "identifier": 32,
    "summary": 500,
    "flags": 100,
    "overrides": 32,
    "end_user": 256,
    "model": 256,
    "method": 256,
    "path": 512,
    "source_ip": 256,
    "user_agent": 512,
    "organization": 256,
    "trace_id": 100,
    "request_id": 256,
}
_OUTCOME_TEXTS = ("outcome_openai_id", "outcome_model", "outcome_organization")
_OUTCOME_NUMBERS = (
    *("first_byte_us", "duration_us"),
    *("input_tokens", "output_tokens", "cached_tokens", "cost_nano"),
)
_COUNTS = (
    *("requests", "denied", "would_deny", "attributed", "unattributed"),
    *("input_tokens", "output_tokens", "cost_nano"),
)


def upgrade() -> None:
    _decisions()
    _counts()
    op.create_table(
        "waiting_outcomes",
        sa.Column("decision_id", _ID, primary_key=True),
        sa.Column("outcome", sa.LargeBinary, nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
    )
    size = op.create_table(
        "log_size",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("decisions", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(size, [{"id": 1, "decisions": 0}])
    op.create_table(
        "log_lost",
        sa.Column("process", sa.String(32), primary_key=True),
        sa.Column("decisions", sa.BigInteger, nullable=False),
    )
    installation = op.create_table(
        "installation",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("identity", sa.String(32), nullable=False),
    )
    op.bulk_insert(installation, [{"id": 1, "identity": secrets.token_hex(16)}])
    op.create_table(
        "workers",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("host", sa.String(256), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
    )


def _decisions() -> None:
    small = ("verdict", "status", "ignored", "user_state", "body_user", "body_safety_identifier")
    op.create_table(
        "decisions",
        sa.Column("id", _ID, primary_key=True),
        *(sa.Column(name, sa.SmallInteger, nullable=False) for name in small),
        *(sa.Column(name, sa.SmallInteger) for name in ("mode", "source")),
        *(sa.Column(name, sa.Boolean, nullable=False) for name in ("in_scope", "sample")),
        sa.Column("revision", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.String(n), nullable=False) for name, n in _DECISION_TEXTS.items()),
        *(sa.Column("outcome_" + name, sa.SmallInteger) for name in ("ending", "status")),
        *(sa.Column("outcome_" + name, sa.BigInteger) for name in _OUTCOME_NUMBERS),
        *(sa.Column(name, sa.String(256)) for name in _OUTCOME_TEXTS),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_decisions_key", "decisions", ["key_id", "id"])
    op.create_index("ix_decisions_key_verdict", "decisions", ["key_id", "verdict", "id"])
    op.create_index("ix_decisions_verdict", "decisions", ["verdict", "id"])
    op.create_index("ix_decisions_operation", "decisions", ["operation", "id"])
    for name, column in (("flags", "flags"), ("end_user", "end_user"), ("trace", "trace_id")):
        filled = sa.text(f"{column} <> ''")
        op.create_index(
            f"ix_decisions_{name}",
            "decisions",
            [column, "id"],
            sqlite_where=filled,
            postgresql_where=filled,
        )


def _counts() -> None:
    op.create_table(
        "hourly_counts",
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key_id", sa.String(32), primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS),
    )
    op.create_table(
        "daily_user_counts",
        sa.Column("day", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("end_user", sa.String(256), primary_key=True),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS),
    )
