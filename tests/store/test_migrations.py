"""A database of an older policyd is migrated to this version's form."""

from contextlib import closing
from datetime import timedelta

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from policyd.decision_log.record import Verdict
from policyd.engine.settings import Setting
from policyd.engine.states import Mode, Override
from policyd.errors import StoreUnusable
from policyd.policies import TABLE
from policyd.store import LogFilter, Store, forms, migrations
from policyd.store.database import writing
from policyd.store.engine import make_file, open_engine
from tests.support.records import START, denied, outcome, record

OLD = {
    "id": denied().id,
    "verdict": Verdict.DENIED.value,
    "status": 403,
    "key_id": "",
    "in_scope": False,
    "sample": False,
    **dict.fromkeys(("ignored", "user_state", "body_user", "body_safety_identifier"), 0),
    "revision": 3,
    **dict.fromkeys(("operation", "identifier", "flags", "overrides", "end_user", "model"), ""),
    **dict.fromkeys(("method", "path", "source_ip", "user_agent", "organization"), ""),
    **dict.fromkeys(("trace_id", "request_id"), ""),
    "summary": "Denied: the API key is not valid here.",
}
COUNTS = ("requests", "denied", "would_deny", "attributed", "unattributed")
TOKENS = ("input_tokens", "output_tokens", "cost_nano")


def test_a_database_of_the_third_form(new_database: str) -> None:
    """Its contents are still read, and its refused keys no longer count as blocked."""
    make_file(new_database)
    engine = open_engine(new_database)
    config = Config()
    config.set_main_option("script_location", "policyd.store:migrations")
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        tables = sa.MetaData()
        tables.reflect(connection)
        connection.execute(sa.insert(tables.tables["decisions"]).values(OLD))
        hour = int(START.timestamp()) // 3600
        for key_id in ("", "key_1"):
            counts = dict.fromkeys(COUNTS + TOKENS, 7) | {"key_id": key_id}
            hourly, daily = (tables.tables[n] for n in ("hourly_counts", "daily_user_counts"))
            connection.execute(sa.insert(hourly).values(counts | {"hour": hour}))
            row = counts | {"day": hour // 24, "end_user": "ceo@corp" if not key_id else "ada"}
            connection.execute(sa.insert(daily).values(row))
    engine.dispose()
    with closing(Store(new_database)) as store:
        store.migrate()
        store.migrate()
        [found] = store.log.page(LogFilter())
        assert (found.id, found.is_key_refused) == (OLD["id"], True)
        store.log.append([one := record(), outcome(one, cache_write_tokens=4)])
        told = store.log.get(one.id).outcome
        assert told
        assert told.cache_write_tokens == 4
        [(_, hour_of)] = store.statistics.hours(START, START + timedelta(minutes=1))
        assert (hour_of.requests, hour_of.denied, hour_of.errors, hour_of.placeholders) == (
            8,
            7,
            0,
            0,
        )
        assert [user for user, _ in store.statistics.users(START, START)] == ["ada"]


def test_settings_that_an_older_form_has_no_place_for(new_database: str) -> None:
    """A way back that would lose a key's settings is refused, unless it is forced.

    The settings that the older form has stay, as does the log.
    """
    store = Store(new_database)
    store.migrate()
    policies = TABLE.with_original(Mode.AUDIT, Override.LOCKED)
    key, _ = store.keys.create("app", (*policies, ("max_tokens", Setting(Mode.ENFORCE, "5"))))
    store.log.append([one := record(flags="x")])
    engine = open_engine(new_database)
    with pytest.raises(StoreUnusable, match=rf"1 keys have settings .*{key.id}.* or force it"):
        forms.downgrade(engine, "0009")
    assert forms.read(engine).revision == migrations.HEAD
    forms.downgrade(engine, "0009", force=True)
    assert forms.read(engine).revision == "0009"
    store.migrate()
    assert store.keys.get(key.id).policies == policies
    assert store.log.page(LogFilter(flag="x")) == [one]
    forms.downgrade(engine, "0009")
    engine.dispose()
    store.close()


def test_the_newest_form_is_known_without_alembic() -> None:
    """A start compares two numbers."""
    config = Config()
    config.set_main_option("script_location", "policyd.store:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == migrations.HEAD
