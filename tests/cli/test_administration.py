"""The same commands over the database and over AdminService of a running server."""

import json
import re
import socket
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
import trustme

from policyd.cli.administration import OfStore, find
from policyd.settings import ServerSettings
from policyd.store import Store
from tests.support.commands import invoke
from tests.support.databases import open_store
from tests.support.processes import Policyd
from tests.support.records import outcome, record
from tests.support.running import beside


class Served(NamedTuple):
    """A policyd: the folder of its files, and where its AdminService is."""

    folder: Path
    admin: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A policyd with a database of its own, which speaks TLS and asks for a certificate."""
    folder = tmp_path_factory.mktemp("administered")
    authority, stranger = trustme.CA(), trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(folder / "key.pem")
    own.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    stranger.cert_pem.write_to_path(folder / "other.pem")
    names = {"tls_cert": "cert.pem", "tls_key": "key.pem", "tls_client_ca": "ca.pem"}
    with beside(folder, **{setting: folder / name for setting, name in names.items()}) as running:
        yield Served(folder, str(running.admin))


def pair(folder: Path) -> tuple[str, ...]:
    """The options that name the certificate, which serves as the client's too."""
    return ("--tls-cert", f"{folder}/cert.pem", "--tls-key", f"{folder}/key.pem")


def place(server: Served) -> tuple[str, ...]:
    """The options that name the server and its token."""
    return ("--server", server.admin, "--token-file", str(server.folder / "admin-token"))


def remote(server: Served) -> tuple[str, ...]:
    """The options that name the server, and what TLS with it takes."""
    return (*place(server), "--tls-ca", f"{server.folder}/ca.pem", *pair(server.folder))


@pytest.fixture
def both(server: Served, tmp_path: Path) -> Iterator[list[tuple[Store, Sequence[str]]]]:
    """A store and the options that name it: a database's, and those of a server."""
    own = f"sqlite:///{tmp_path}/own.db"
    stores = [open_store(own), Store(f"sqlite:///{server.folder}/policyd.db")]
    yield [(stores[0], ("--database-url", own)), (stores[1], remote(server))]
    for store in stores:
        store.close()


_CHANGING = re.compile(
    r"key_[0-9a-f]{16}|up-[0-9a-zA-Z]{48}|\d{4}-\d\d-\d\d[T ][\d:.]+(\+00:00|Z)?"
    r"|(?<=suffix\": \")\w{4}|(?<=suffix            )\w{4}|(?<=suffix: )\w{4}"
    r"|(?<=revision\": )\d+|(?<=revision          )\d+|(?<=\"id\": )\d+|(?<=TIME  )\d+"
    r"|cli \S+@\S+|admin api \S+"
)


def outcome_of(done: CompletedProcess[bytes]) -> tuple[int, str, str]:
    """What a command printed, without what differs from run to run."""
    texts = (_CHANGING.sub("*", text.decode()) for text in (done.stdout, done.stderr))
    out, err = (re.sub(r" +", " ", text) for text in texts)
    return done.returncode, re.sub(r"^\* \d+ ", "* * ", out, flags=re.M), err


KEYS = (
    ("create", "app", "--policy", "max_tokens=enforce:500", "--accept", "user"),
    ("create", "app"),
    ("create", "other", "--enforce-user-ids", "audit", "--override", "locked", "--json"),
    ("create", "", "--json"),
    ("create", "short", "--expires", "1d", "--json"),
    ("list",),
    ("list", "--json"),
    ("show", "app"),
    ("show", "unknown"),
    ("set", "app", "--name", "renamed", "--policy", "max_prompt_chars=audit:9", "--json"),
    ("set", "renamed", "--accept", "email"),
    ("set", "renamed", "--name", "other"),
    ("set", "renamed", "--policy", "max_tokens=default", "--expires", "never"),
    ("rotate", "renamed", "--keep", "1h", "--json"),
    ("rotate", "renamed", "--keep", "200d"),
    ("revoke", "other"),
    ("set", "other", "--name", "x"),
    ("list", "--revoked"),
)


def test_keys(both: list[tuple[Store, Sequence[str]]]) -> None:
    """Every command of keys prints the same over the database and over a server, errors too."""
    for words in KEYS:
        local, over = (outcome_of(invoke("policyd", "keys", *words, *where)) for _, where in both)
        assert over == local, words


def test_audit(both: list[tuple[Store, Sequence[str]]]) -> None:
    """The audit trail reads the same, but for the actor's name."""
    for _, where in both:
        invoke("policyd", "keys", "create", "audited", *where)
        invoke("policyd", "keys", "set", "audited", "--name", "audited twice", *where)
    for words in ((), ("--json",), ("--action", "key.update")):
        limited = ("policyd", "audit", "--key-id", "audited twice", *words)
        local, over = (outcome_of(invoke(*limited, *where)) for _, where in both)
        assert over == local, words
    for (_, where), actor in zip(both, ("cli ", "admin api 127.0.0.1"), strict=True):
        done = invoke("policyd", "audit", "--limit", "1", "--json", *where)
        assert json.loads(done.stdout)["actor"].startswith(actor)
        unknown = invoke("policyd", "audit", "--action", "key.rotated", *where)
        assert unknown.returncode == 2
        assert b"'key.rotate'" in unknown.stderr


@pytest.mark.slow
def test_logs(both: list[tuple[Store, Sequence[str]]], tmp_path: Path) -> None:
    """The log reads the same: lists, one decision, files and the status. Only whether the request
    named its model is not told by AdminService."""
    plain = record(model="gpt-4o", flags="missing_user_id", trace_id="t" * 32)
    answered = record(end_user="grace", request_id="r-1")
    for store, _ in both:
        store.log.append([plain, answered, outcome(answered)])
    for words in (
        ("list",),
        ("list", "--json", "--user", "grace"),
        ("list", "--limit", "1"),
        ("list", "--any-id", "nothing"),
        ("list", "--key-id", "key_0123456789abcdef"),
        ("list", "--key-id", "unknown"),
        ("list", "--since", "1h", "--decision", "denied"),
        ("show", plain.id),
        ("show", "r-1"),
        ("show", "0" * 32),
        ("export", "--user", "grace"),
        ("export", "--format", "csv"),
    ):
        local, over = (invoke("policyd", "logs", *words, *where) for _, where in both)
        assert over.returncode == local.returncode, over.stderr
        assert over.stderr == local.stderr
        assert over.stdout == local.stdout, words
    for store, _ in both:
        csv, of_grace = store.audit.list(action="log.export")
        assert (csv.after["format"], csv.after["filter"]) == ("csv", "")
        assert (of_grace.after["format"], of_grace.after["filter"]) == ("jsonl", "user=grace")
    local, over = (
        json.loads(invoke("policyd", "logs", "status", "--json", *where).stdout)
        for _, where in both
    )
    # Only where a server answers, a worker runs.
    running = {"clock_offset": 0, "clock_host": "", "workers": 0}
    assert (local | running).items() >= (over | running).items()
    assert (local["workers"], over["workers"], over["gateways"]) == (0, 1, 0)


def refused(words: Sequence[str], *, at: Sequence[str]) -> str:
    """What a command says that cannot reach its server."""
    done = invoke("policyd", *words, *at)
    assert done.returncode in (1, 2), done.stdout
    assert len(done.stderr.decode().splitlines()) <= 4
    return done.stderr.decode()


def test_a_server_that_cannot_be_used(policyd: Policyd, tmp_path: Path) -> None:
    """A wrong token, a port of another kind, none at all and a missing file: one sentence with the
    fix each, without a traceback. No database is made."""
    other = tmp_path / "other-token"
    other.write_text("0123456789abcdef")
    other.chmod(0o600)
    open_ = tmp_path / "open-token"
    open_.write_text("0123456789abcdef")
    open_.chmod(0o644)
    token = ("--token-file", str(policyd.folder / "admin-token"))
    words = ("keys", "list")
    for at, told in (
        (("--server", policyd.admin, "--token-file", str(other)), "does not accept the token"),
        (("--server", policyd.admin, "--token-file", str(open_)), "chmod 600"),
        (("--server", policyd.admin, "--token-file", str(tmp_path / "no")), "cannot be read"),
        (("--server", policyd.admin), "--server needs --token-file"),
        (("--server", policyd.grpc, *token), "does not have ListApiKeys"),
        (("--server", "127.0.0.1:1", *token), "nothing listens there"),
        (("--server", "nowhere", *token), "--server takes HOST:PORT"),
        (("--server", "192.0.2.1:1", *token), "in the clear"),
        (("--server", policyd.admin, *token, "--tls"), "it does not speak TLS"),
        (("--server", policyd.admin, *token, "--tls-ca", str(other)), "holds no certificate"),
    ):
        assert told in refused(words, at=at), at
    assert "--server" in refused(("keys", "create", "x"), at=("--server", "127.0.0.1:1", *token))
    assert not list(tmp_path.glob("*.db"))


def test_tls(server: Served) -> None:
    """Over TLS the command trusts the authority that it is given, and shows its certificate where
    the server asks for one."""
    folder, at, words = server.folder, place(server), ("keys", "list")
    done = invoke("policyd", *words, *remote(server))
    assert done.returncode == 0, done.stderr
    other = ("--tls-ca", f"{folder}/other.pem", *pair(folder))
    assert "--tls-ca" in refused(words, at=(*at, *other))
    assert "--tls" in refused(words, at=at)
    told = refused(words, at=(*at, "--tls-ca", f"{folder}/ca.pem"))
    assert "--tls-cert" in told


def test_names_of_old_databases(both: list[tuple[Store, Sequence[str]]], tmp_path: Path) -> None:
    """An ID wins over a name. Where several keys have a name, as older versions allowed, they are
    listed, and each can be named by its ID."""
    file, store, where = tmp_path / "own.db", *both[0]
    first, _ = store.keys.create("first")
    second, _ = store.keys.create("second")
    store.keys.create(first.id)  # Named as another one's ID.
    shown = invoke("policyd", "keys", "show", first.id, "--json", *where)
    assert json.loads(shown.stdout)["name"] == "first"
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE api_keys SET name = 'twin' WHERE name IN ('first', 'second')")
    connection.close()
    told = refused(("keys", "revoke", "twin"), at=where)
    assert "2 keys have the name 'twin'" in told
    assert first.id in told
    assert second.id in told
    assert invoke("policyd", "keys", "set", second.id, "--name", "free", *where).returncode == 0
    assert invoke("policyd", "keys", "revoke", "twin", *where).returncode == 0


def test_a_name_among_many(tmp_path: Path) -> None:
    """A key is found by its name in as many queries among 10,000 keys as alone, none of which
    reads the others."""
    with closing(open_store(f"sqlite:///{tmp_path}/own.db")) as store:
        first, _ = store.keys.create("first")
        alone = queries_of_find(store, "first", first.id)
        assert len(alone) == 2  # By an ID, and by a name.
        rows = (
            (f"key_{number:016x}", f"name-{number}", b"%d" % number) for number in range(10_000)
        )
        with closing(sqlite3.connect(tmp_path / "own.db")) as connection, connection:
            connection.execute("CREATE TEMP TABLE made (id, name, digest)")
            connection.executemany("INSERT INTO made VALUES (?, ?, ?)", rows)
            columns = "mode, override, accept, created_at, updated_at, revision"
            connection.execute(
                f"INSERT INTO api_keys (id, name, digest, {columns})"  # noqa: S608  # our own words
                f" SELECT made.id, made.name, made.digest, {columns} FROM made, api_keys"
            )
        for name, key_id in (("first", first.id), ("name-9999", f"key_{9999:016x}")):
            assert queries_of_find(store, name, key_id) == alone
    with closing(sqlite3.connect(tmp_path / "own.db")) as connection:
        for query, parameters in alone:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {query}", ("x",) * parameters)
            assert not [row for row in plan if row[3].startswith("SCAN")]


def queries_of_find(store: Store, name: str, key_id: str) -> list[tuple[str, int]]:
    """The queries of keys in which one is found, each with the number of its parameters."""
    made: list[tuple[str, int]] = []

    def note(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        if "api_keys" in statement:
            made.append((statement, len(parameters)))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        assert find(OfStore(store, "test"), name).id == key_id
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    return made


def test_looking_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that looks in the wrong folder makes no database there."""
    monkeypatch.chdir(tmp_path)
    for words in (
        ("keys", "list"),
        ("keys", "show", "app"),
        ("keys", "revoke", "app"),
        ("logs", "list"),
        ("logs", "status"),
        ("audit",),
        ("simulate", "app"),
        ("explain", "--key", "x", "--has-user"),
    ):
        assert invoke("policyd", *words).returncode == 1, words
    assert list(tmp_path.iterdir()) == []


def test_no_database_beside_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`keys create` says where it makes a database. It makes none where nothing names one and a
    policyd runs on this machine, which has its own elsewhere."""
    monkeypatch.chdir(tmp_path)
    port = ServerSettings().admin.port
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError:
        listening = None  # Another program listens there, which will do as well.
    try:
        done = invoke("policyd", "keys", "create", "app")
        assert done.returncode == 1
        assert b"has one elsewhere, so none is made" in done.stderr
        assert list(tmp_path.iterdir()) == []
        made = invoke("policyd", "keys", "create", "app", "--database-url", "sqlite:///own.db")
        assert made.returncode == 0
        assert f"There is no database {tmp_path}/own.db yet; it is made." in made.stderr.decode()
    finally:
        if listening is not None:
            listening.close()
