"""Refused keys apart from the log, more counts, what was written to caches, and search by ID."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_ID = sa.String(32).with_variant(sa.String(32, collation="C"), "postgresql")
_REASONS = ("missing", "unknown", "conflicting")
_SAMPLE_TEXTS = (
    *("source_ip", "method", "path", "model", "user_agent"),
    *("trace_id", "request_id"),
)
_MORE_COUNTS = ("flagged", "errors", "timed", "duration_us", "placeholders")


def upgrade() -> None:
    _refused_keys()
    for table in ("hourly_counts", "daily_user_counts"):
        for name in _MORE_COUNTS:
            count = sa.Column(name, sa.BigInteger, nullable=False, server_default="0")
            op.add_column(table, count)
    some = sa.text("placeholders > 0")
    op.create_index(
        "ix_daily_user_counts_placeholders",
        "daily_user_counts",
        ["day"],
        sqlite_where=some,
        postgresql_where=some,
    )
    op.add_column("decisions", sa.Column("outcome_cache_write_tokens", sa.BigInteger))
    for name, column in (("request", "request_id"), ("openai", "outcome_openai_id")):
        filled = sa.text(f"{column} <> ''")
        op.create_index(
            f"ix_decisions_{name}",
            "decisions",
            [column, "id"],
            sqlite_where=filled,
            postgresql_where=filled,
        )


def _refused_keys() -> None:
    op.create_table(
        "refused_keys",
        sa.Column("process", sa.String(32), primary_key=True),
        sa.Column("stretch", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("source", sa.String(64), primary_key=True),
        sa.Column("minute", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _REASONS),
    )
    op.create_index("ix_refused_keys_minute", "refused_keys", ["minute"])
    op.create_table(
        "hourly_refused_keys",
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _REASONS),
    )
    op.create_table(
        "refused_samples",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("reason", sa.SmallInteger, nullable=False),
        *(sa.Column(name, sa.String(200), nullable=False) for name in _SAMPLE_TEXTS),
    )
