"""A database of an older policyd is migrated to this version's form."""

import socket
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from policyd.decision_log.record import Verdict
from policyd.engine.settings import ServerDefaults, Setting
from policyd.engine.states import Mode, Override
from policyd.errors import OlderServers, StoreUnusable
from policyd.keys import api_key
from policyd.policies import TABLE
from policyd.store import LogFilter, Store, migrations, schema
from policyd.store.database import writing
from policyd.store.engine import make_file, open_engine
from tests.support.old_version import BEFORE_ROTATION, OldVersion
from tests.support.processes import Policyd
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
    """This version reads the contents of the third form, and its refused keys no longer count as
    blocked."""
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
        schema.downgrade(engine, "0009")
    assert schema.read(engine).revision == migrations.HEAD
    schema.downgrade(engine, "0009", force=True)
    assert schema.read(engine).revision == "0009"
    store.migrate()
    assert store.keys.get(key.id).policies == policies
    assert store.log.page(LogFilter(flag="x")) == [one]
    schema.downgrade(engine, "0009")
    engine.dispose()
    store.close()


def test_a_way_back_before_rotation(new_database: str) -> None:
    """A way back revives no key that has expired, and is refused where one is yet to, or where
    defaults were applied, unless it is forced. The audit trail stays."""
    engine = open_engine(new_database)
    with closing(Store(new_database)) as store:
        store.migrate()
        now = store.time()
        expired, _ = store.keys.create("expired", expires_at=now - timedelta(days=1))
        later, _ = store.keys.create("later", expires_at=now + timedelta(days=1))
        rotated, old = store.keys.create("rotated")
        _, new = store.keys.rotate(rotated.id, timedelta(days=1))
        store.keys.rotate(rotated.id, timedelta(days=1))
        with pytest.raises(StoreUnusable, match=rf"keys are yet to expire.*{later.id}"):
            schema.downgrade(engine, "0011")
        store.keys.revoke(later.id)
        store.apply([], ServerDefaults(TABLE.with_original(Mode.AUDIT)))
        with pytest.raises(StoreUnusable, match="defaults were applied"):
            schema.downgrade(engine, "0011")
        trail = store.audit.list()
        schema.downgrade(engine, "0011", force=True)
        assert schema.read(engine).revision == "0011"
        store.migrate()
        assert store.keys.get(expired.id).revoked_at
        assert store.keys.get(expired.id).revision > rotated.revision
        assert not store.keys.get(rotated.id).revoked_at
        for secret in (old, new):
            assert store.keys.in_force(api_key.digest(secret)) is None
        assert store.defaults() is None
        assert store.audit.list() == trail
        store.keys.revoke(rotated.id)
        assert store.audit.list()[0].id == trail[0].id + 1
    engine.dispose()


@pytest.mark.slow
def test_the_version_before_rotation_beside_this_one(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    """The older server and its commands go on beside this version, which rotates no key before that
    server has ended: for it, the former secret would stay in force."""
    old = OldVersion(tmp_path / "old", BEFORE_ROTATION)
    server = start(Policyd, tmp_path, **old.serving)
    secret = server.create_key()
    url = server.database_url
    with closing(Store(url)) as store:
        store.migrate()
        [key] = store.keys.list()
        assert key.suffix == ""
        listed = old.policyd("keys", "set", key.id, "--name", "app", "--database-url", url)
        assert "app" in listed
        until = time.monotonic() + 60
        while not store.workers.list() and time.monotonic() < until:
            time.sleep(0.1)
        with pytest.raises(OlderServers, match=socket.gethostname()):
            store.keys.rotate(key.id, timedelta(days=1))
        created, _ = store.keys.create("new")
        server.reach(created.revision)
        assert server.stop() == 0
        store.keys.rotate(key.id, timedelta(days=1))
        assert store.keys.in_force(api_key.digest(secret))
        assert "new" in old.policyd("keys", "list", "--database-url", url)
        # What it makes meanwhile counts here, a name that is taken, too.
        old.policyd("keys", "create", "new", "--database-url", url)
        assert [one.name for one in store.keys.list()] == ["app", "new", "new"]


def test_the_newest_form_is_known_without_alembic() -> None:
    """A start compares two numbers."""
    config = Config()
    config.set_main_option("script_location", "policyd.store:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == migrations.HEAD
