"""A database changes its form on request, and the version before runs on beside it."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click
import grpc
import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from click.testing import CliRunner

from policyd.cli.main import main
from policyd.engine.settings import Setting
from policyd.engine.states import Mode, Override
from policyd.errors import StoreUnavailable
from policyd.policies import TABLE
from policyd.store import LogFilter, Store, key_indexes, migrations, schema
from policyd.store.database import writing
from policyd.store.engine import open_engine
from policyd.v1.policy_pb2 import DECISION_DENY, EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.support.commands import invoke
from tests.support.old_version import OldVersion
from tests.support.postgresql import PostgreSQL
from tests.support.processes import Policyd, run
from tests.support.records import record
from tests.support.waiting import wait_until

NOW = datetime.now(UTC)
FILL = """
import sys
from datetime import UTC, datetime, timedelta
from policyd.store import Store
from tests.records import record
store = Store(sys.argv[1])
store.migrate()
now = datetime.now(UTC)
for day in range(int(sys.argv[2])):
    at = now - timedelta(days=day)
    store.log.append([record(at - timedelta(seconds=n)) for n in range(100)])
print(store.create_key("old")[0].id)
"""
COMMANDS: dict[str, tuple[str, ...]] = {
    "apply": ("--file", "-"),
    "audit": (),
    "explain": ("--key", "up-" + "x" * 48, "--no-user"),
    "export": (),
    "keys create": ("new",),
    "keys list": (),
    "keys revoke": ("key_1",),
    "keys rotate": ("key_1",),
    "keys set": ("key_1", "--name", "x"),
    "keys show": ("key_1",),
    "logs export": (),
    "logs list": (),
    "logs refused": (),
    "logs remove-sample": (),
    "logs retire": ("--older-than", "1d", "--yes"),
    "logs show": ("x",),
    "logs status": (),
    "logs tail": (),
    "simulate": ("key_1",),
}
"""Every command that uses the database and is not about its form."""
DECLARED = "version: 1\nkeys:\n  app: {}\n"
"""What `apply` reads."""
OTHERS = {"config", "db", "demo", "doctor", "health", "policies", "serve"}
ANYWHERE = ("--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0")
"""Flags of `policyd serve`."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> OldVersion:
    return OldVersion(tmp_path_factory.mktemp("old"))


def number(url: str, table: str) -> str:
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            named = sa.table(table, sa.column("version_num"))
            return str(connection.execute(sa.select(named)).scalar_one())
    finally:
        engine.dispose()


def commands(group: click.Group, path: str = "") -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):  # Some commands are loaded only now.
        one = group.get_command(context, name)
        if isinstance(one, click.Group) and name not in OTHERS:
            yield from commands(one, f"{path}{name} ")
        elif name not in OTHERS:
            yield path + name


def test_the_newest_form() -> None:
    """The newest form that the code knows is the newest migration."""
    config = Config()
    config.set_main_option("script_location", "policyd.store:migrations")
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.HEAD]
    assert migrations.NEEDS <= migrations.HEAD


def test_which_commands_migrate(new_database: str, old: OldVersion) -> None:
    """Only the commands that announce it change an older database's form.

    Each other one names them.
    """
    key = old.run(FILL, new_database, "1").strip()
    assert set(commands(main)) == COMMANDS.keys()
    for name, words in COMMANDS.items():
        line = [*name.split(), *words, "--database-url", new_database]
        done = CliRunner().invoke(main, line, input=DECLARED)
        assert done.exit_code == 1, name
        assert "run policyd db migrate" in done.output, name
    # It tells of the form, as of all else that it looks at.
    assert CliRunner().invoke(main, ["doctor", "--database-url", new_database]).exit_code == 1
    refused = run("policyd", "serve", "--no-migrate", *ANYWHERE, "--database-url", new_database)
    assert b"run policyd db migrate" in refused.stderr
    status = run("policyd", "db", "status", "--json", "--database-url", new_database)
    assert status.returncode == 1
    assert json.loads(status.stdout)["form"] == number(new_database, "alembic_version") == "0005"
    dry = run("policyd", "db", "migrate", "--dry-run", "--database-url", new_database)
    assert dry.returncode == 0
    assert f"would run: {migrations.HEAD} ".encode() in dry.stdout
    assert number(new_database, "alembic_version") == "0005"
    for _ in range(2):
        migrated = run("policyd", "db", "migrate", "--database-url", new_database)
        assert migrated.returncode == 0, migrated.stderr
    found = run("policyd", "keys", "show", key, "--database-url", new_database)
    assert found.returncode == 0, found.stderr
    # The version before can use the database again, too.
    assert key in old.policyd("keys", "list", "--database-url", new_database)
    assert number(new_database, "schema_version") == migrations.HEAD


def test_a_new_database(new_database: str) -> None:
    """The first key makes a new database, as serve does; a command that only reads does not."""
    listed = invoke("policyd", "keys", "list", "--database-url", new_database)
    assert listed.returncode == 1
    made = invoke("policyd", "keys", "create", "app", "--database-url", new_database)
    assert made.returncode == 0, made.stderr
    assert number(new_database, "schema_version") == migrations.HEAD


def test_several_migrate_at_once(new_database: str, old: OldVersion) -> None:
    """Replicas that are started at once bring an older database to its form, once."""
    old.run(FILL, new_database, "3")
    words = ("policyd", "db", "migrate", "--database-url", new_database)
    with ThreadPoolExecutor(4) as threads:
        for done in threads.map(lambda _: run(*words), range(4)):
            assert done.returncode == 0, done.stderr
    with closing(Store(new_database)) as store:
        assert store.log.status().decisions == len(store.log.page(LogFilter(), limit=1000)) == 300


def upgraded(url: str, folder: Path, works_from: str) -> None:
    """Take the database to a form that no version has yet."""
    folder.mkdir()
    (folder / "9000_later.py").write_text(
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        f"revision, down_revision = '9000', '{migrations.HEAD}'\n"
        "def upgrade() -> None:\n"
        "    op.create_table('later', sa.Column('id', sa.Integer, primary_key=True))\n"
        "    op.add_column('api_keys', sa.Column('later', sa.String(9), server_default=''))\n"
        "    op.add_column('decisions', sa.Column('later', sa.String(9), server_default=''))\n"
        "    op.execute(sa.update(sa.table('schema_form', sa.column('works_from')))"
        f".values(works_from='{works_from}'))\n"
    )
    config = Config()
    config.set_main_option("script_location", "policyd.store:migrations")
    config.set_main_option("path_separator", "space")
    ours = Path(migrations.__file__).parent / "versions"
    config.set_main_option("version_locations", f"{ours} {folder}")
    engine = open_engine(url)
    try:
        with writing(engine) as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "9000")
    finally:
        engine.dispose()


def test_a_newer_form_that_this_version_can_use(
    new_database: str, tmp_path: Path, start: Callable[..., Any]
) -> None:
    """A server goes on while a newer version migrates its database, and starts again on it."""
    server = start(Policyd, tmp_path, database_url=new_database)
    key = server.create_key("enforce")
    upgraded(new_database, tmp_path / "later", works_from=migrations.HEAD)
    assert server.create_key("enforce") != key
    assert asked(server, key) == DECISION_DENY
    assert server.stop() == 0
    again = start(Policyd, tmp_path, database_url=new_database)
    assert asked(again, key) == DECISION_DENY
    assert again.stop() == 0
    with closing(Store(new_database)) as store:
        assert len(store.log.page(LogFilter())) == 2
    status = run("policyd", "db", "status", "--json", "--database-url", new_database)
    assert status.returncode == 0
    assert json.loads(status.stdout)["form"] == "9000"


@pytest.mark.slow
def test_a_newer_form_that_this_version_cannot_use(new_database: str, tmp_path: Path) -> None:
    """Every command rejects the database, and leaves it as it is."""
    with closing(Store(new_database)) as store:
        store.migrate()
        upgraded(new_database, tmp_path / "later", works_from="9000")
        with pytest.raises(StoreUnavailable, match="newer policyd; run that version"):
            store.migrate()
    for words, begin in (
        (("keys", "list"), invoke),
        (("db", "migrate"), invoke),
        (("serve", *ANYWHERE), run),
    ):
        done = begin("policyd", *words, "--database-url", new_database)
        assert done.returncode == 1
        assert b"it was used with a newer policyd" in done.stderr
    assert number(new_database, "schema_version") == "9000"


def asked(server: Policyd, key: str) -> int:
    with grpc.insecure_channel(server.grpc) as channel:
        request = EvaluateRequest(key=key, has_user=False)
        return PolicyServiceStub(channel).Evaluate(request, timeout=30).decision


class Asking:
    """Asks a server all the time, and counts its answers."""

    def __init__(self, server: Policyd, key: str) -> None:
        self.answers = 0
        self._server, self._key = server, key
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with grpc.insecure_channel(self._server.grpc) as channel:
            stub = PolicyServiceStub(channel)
            while not self._done.wait(0.002):
                answer = stub.Evaluate(EvaluateRequest(key=self._key, has_user=False), timeout=30)
                assert answer.decision == DECISION_DENY
                self.answers += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._thread.join()


def test_under_a_running_server_of_the_version_before(
    new_database: str, tmp_path: Path, old: OldVersion, start: Callable[..., Any]
) -> None:
    """The older server runs on during the migration, logs everything, and can restart."""
    old.run(FILL, new_database, "5")
    key = json.loads(
        old.policyd(
            *("keys", "create", "app", "--enforce-user-ids", "enforce", "--json"),
            *("--database-url", new_database),
        )
    )["key"]
    answers = 0
    for is_first in (True, False):
        server = start(Policyd, tmp_path, database_url=new_database, **old.serving)
        asking = Asking(server, key)
        with asking.running():
            time.sleep(1)
            if is_first:
                done = run("policyd", "db", "migrate", "--database-url", new_database)
                assert done.returncode == 0, done.stderr
            time.sleep(1)
        assert server.stop() == 0
        assert not any("cannot be used" in line for line in server.errors), server.errors
        answers += asking.answers
    assert answers > 100
    with closing(Store(new_database)) as store:
        assert store.log.status().decisions == 500 + answers
        store.log.append([record()])


def test_settings_beside_the_version_before(new_database: str, old: OldVersion) -> None:
    """What either version changes counts for both, and the older one leaves further policies."""
    key_id = old.run(FILL, new_database, "1").strip()
    url = ("--database-url", new_database)
    store = Store(new_database)
    store.migrate()
    limit = ("max_tokens", Setting(Mode.ENFORCE, "5"))
    store.keys.update(key_id, {"policies": (*TABLE.with_original(Mode.OFF), limit)})
    assert "off" in old.policyd("keys", "show", key_id, *url)
    old.policyd("keys", "set", key_id, "--enforce-user-ids", "audit", "--override", "locked", *url)
    original = TABLE.with_original(Mode.AUDIT, Override.LOCKED)
    assert store.keys.get(key_id).policies == (limit, *original)
    made = json.loads(old.policyd("keys", "create", "app", "--json", *url))
    assert store.keys.get(made["id"]).policies == TABLE.with_original(None, Override.ANY)
    store.log.append([record(results="[]", flags="policy_max_tokens", end_users="{}")])
    assert "policy_max_tokens" in old.policyd("logs", "export", *url)
    store.close()


def test_rows_are_not_read_under_a_lock(postgresql: PostgreSQL, old: OldVersion) -> None:
    """PostgreSQL makes a partition of the log without reading it while others wait."""
    with postgresql.database() as url:
        old.run(FILL, url, "1")
        engine = open_engine(url)
        heard: list[str] = []

        @sa.event.listens_for(engine, "connect")
        def listen(connection: psycopg.Connection[Any], _: object) -> None:
            connection.execute("SET client_min_messages = debug1")
            connection.commit()
            connection.add_notice_handler(lambda one: heard.append(str(one.message_primary)))

        try:
            schema.migrate(engine)
        finally:
            engine.dispose()
    implied = 'partition constraint for table "decisions_old" is implied by existing constraints'
    assert implied in heard


def test_a_deadlock_while_an_index_is_built(postgresql: PostgreSQL) -> None:
    """If PostgreSQL ends a deadlock at the cost of the process that builds an index, it tries
    again."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype <> 'advisory'"
    with postgresql.database() as url, closing(Store(url)) as store:
        store.migrate()
        engine, plain = open_engine(url), sa.create_engine(url)
        with plain.begin() as connection:
            for name in key_indexes.INDEXES:
                connection.exec_driver_sql(f"DROP INDEX {name}")
        with ThreadPoolExecutor(1) as threads, plain.connect() as other:
            # As a process does that proves a constraint.
            other.exec_driver_sql("LOCK TABLE api_keys IN SHARE UPDATE EXCLUSIVE MODE")
            built = threads.submit(schema._with_patience, partial(key_indexes.build, engine))
            wait_until(lambda: other.exec_driver_sql(waiting).scalar_one())
            # The builder began to wait first, so it finds the deadlock.
            other.execute(sa.select(sa.func.pg_advisory_xact_lock(migrations.POSTGRESQL_LOCK)))
            other.rollback()
            built.result(60)
        engine.dispose()
        plain.dispose()


@contextmanager
def least_user(engine: sa.Engine) -> Iterator[str]:
    """The name of a database user who may read and write rows, and change no table."""
    grants = (
        "CREATE ROLE least LOGIN",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO least",
    )
    execute(engine, grants)
    try:
        yield "least"
    finally:
        execute(engine, ("DROP OWNED BY least", "DROP ROLE least"))


def ids(store: Store) -> list[str]:
    return [one.id for one in store.log.page(LogFilter(), limit=100)]


def execute(engine: sa.Engine, statements: tuple[str, ...]) -> None:
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_a_user_who_may_not_change_tables(
    postgresql: PostgreSQL, tmp_path: Path, start: Callable[..., Any]
) -> None:
    """With --no-migrate such a database user is enough for a server, retention included."""
    with postgresql.database() as url, ExitStack() as ending:
        store = Store(url)
        ending.callback(store.close)
        store.migrate()
        old_one = record(NOW - timedelta(days=20))
        store.log.append([old_one, *(record(NOW) for _ in range(30))])
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        ending.callback(engine.dispose)
        user = ending.enter_context(least_user(engine))
        server = start(
            *(Policyd, tmp_path, "--no-migrate", "--log-retention", "10"),
            database_url=url.replace("postgres@", f"{user}@"),
        )
        # The user cannot be dropped while the server is connected.
        ending.callback(server.stop)
        assert asked(server, server.create_key("enforce")) == DECISION_DENY
        until = time.monotonic() + 60
        while old_one.id in ids(store) and time.monotonic() < until:
            time.sleep(0.05)
        assert server.stop() == 0
        found = ids(store)
        assert len(found) == 31
        assert old_one.id not in found
