"""`policyd logs` and `policyd simulate`, run as an operator runs them."""

import csv
import io
import json
import signal
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from policyd.decision_log import results, spool
from policyd.decision_log.record import Record, Verdict
from policyd.decision_log.refused_key import RefusedKey, RefusedKeyCount, RefusedKeyReason
from policyd.decision_log.shipper import Shipper
from policyd.decision_log.spool import SpoolReader, SpoolWriter
from policyd.engine.model import Result, Violation
from policyd.engine.states import Ignored, Mode, ModelState, Override, Source, UserState
from policyd.keys.audit import Action
from policyd.policies import TABLE
from policyd.store import Store
from policyd.store.destination import StoreDestination
from tests.support.commands import invoke
from tests.support.databases import taking_changes
from tests.support.processes import Program
from tests.support.records import decision_id, denied, outcome, record

NOW = datetime.now(UTC)


def ask(url: str, *words: str) -> str:
    """The output of the command."""
    done = invoke("policyd", *words, "--database-url", url)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def listed(url: str, *words: str) -> list[Any]:
    return [json.loads(line) for line in ask(url, "logs", "list", "--json", *words).splitlines()]


def test_a_list(store: Store, url: str) -> None:
    """The list shows the newest first, as many as wanted, and tells how to get the rest.

    It takes every filter.
    """
    old = record(NOW - timedelta(days=3), end_user="bob", trace_id="t-1", source_ip="192.0.2.7")
    entries = [old, *(denied(NOW - timedelta(minutes=n), operation="embedding") for n in (3, 2, 1))]
    store.log.append([*entries, outcome(old)])
    assert [one["id"] for one in listed(url)] == [one.id for one in reversed(entries)]
    for words in (
        ("--decision", "allowed"),
        ("--user", "bob"),
        ("--user-contains", "BO"),
        ("--http-status", "200"),
        ("--model", "gpt-4o-mini", "--source-ip", "192.0.2.7"),
        ("--trace-id", "t-1"),
        ("--until", "1d"),
        ("--until", (NOW - timedelta(days=1)).isoformat(timespec="minutes")),
        ("--key-id", "key_1", "--operation", "chat_completion"),
    ):
        [found] = listed(url, *words)
        assert found["id"] == old.id
        assert (found["output_tokens"], found["cost_usd"]) == (5, 4.5e-6)
    assert len(listed(url, "--flag", "policy_enforce_user_ids", "--since", "24h")) == 3
    assert len(listed(url, "--without-user")) == 3
    done = invoke("policyd", "logs", "list", "--limit", "2", "--database-url", url)
    assert done.stdout.decode().count("denied") == 2
    after = done.stderr.decode().split()[-1]
    assert [one["id"] for one in listed(url, "--after", after)] == [entries[1].id, old.id]


def of_policies(**given: Any) -> Record:
    """A request that violates the limit of tokens, and keeps the format of users."""
    any_header = (Override.ANY, Ignored.NOT_IGNORED)
    violation = Violation("Config set to max tokens of: 500; request was: 900\x1b", "")
    locked = (Source.KEY, Override.LOCKED, Ignored.LOCKED, violation)
    found = (
        Result("max_tokens", Mode.ENFORCE, "500", *locked),
        Result("user_format", Mode.AUDIT, "min=3", Source.DEFAULT, *any_header),
        Result("poems", Mode.AUDIT, "3", Source.ROUTE, *any_header, has_failed=True),
    )
    usual = {"flags": "policy_max_tokens,invalid_override", "results": results.text(found)}
    return denied(NOW, **usual | given)


def test_decisions_of_a_policy(store: Store, url: str) -> None:
    """Decisions are listed by the policy that they violate, and by any flag."""
    limit, user = of_policies(), denied(NOW)
    store.log.append([limit, user, record(NOW)])
    assert [one["id"] for one in listed(url, "--policy", "max_tokens")] == [limit.id]
    assert [one["id"] for one in listed(url, "--policy", "enforce_user_ids")] == [user.id]
    assert [one["id"] for one in listed(url, "--flag", "invalid_override")] == [limit.id]
    both = ("--policy", "max_tokens", "--flag", "invalid_override")
    assert [one["id"] for one in listed(url, *both)] == [limit.id]
    assert listed(url, "--policy", "max_tokens", "--flag", user.flags) == []
    done = invoke("policyd", "logs", "list", "--policy", "poems", "--database-url", url)
    assert "'poems' is not one of 'max_tokens'" in done.stderr.decode()


def test_what_each_policy_found(store: Store, url: str) -> None:
    """A decision's details show the setting of each policy, and what the policy found."""
    store.log.append([one := of_policies()])
    shown = ask(url, "logs", "show", one.id)
    assert "policies            max_tokens=enforce:500 by the key; violated: Config set to" in shown
    assert "request was: 900\\u001b; header ignored, as the setting is locked\n" in shown
    assert "\n                    user_format=audit:min=3 by the server\n" in shown
    assert "\n                    poems=audit:3 by the route; failed\n" in shown
    told = json.loads(ask(url, "logs", "show", one.id, "--json"))["policies"]
    assert [each["policy"] for each in told] == ["max_tokens", "user_format", "poems"]


def test_the_status(store: Store, url: str) -> None:
    """The status tells how much the log holds, since when, and what was lost."""
    assert json.loads(ask(url, "logs", "status", "--json"))["oldest"] is None
    store.log.append([one := record(NOW), denied(NOW)])
    store.log.lose({"process": 3})
    found = json.loads(ask(url, "logs", "status", "--json"))
    assert (found["decisions"], found["lost"]) == (2, 3)
    assert datetime.fromisoformat(found["oldest"]) == one.time
    assert "lost                3\n" in ask(url, "logs", "status")


def spooled(folder: Path) -> SpoolWriter:
    """A spool in which one decision waits, of a minute ago."""
    spool.prepare(folder, "database")
    writer = SpoolWriter(folder, "worker", 2**20)
    writer.write(msgspec.json.encode(record(NOW - timedelta(minutes=1))) + b"\n")
    return writer


def test_the_status_of_the_spool(store: Store, url: str, tmp_path: Path) -> None:
    """The status tells how much waits in this machine's spool, and since when: what the database
    has no longer waits, though its file is there."""
    words = ("logs", "status", "--json")
    assert json.loads(ask(url, *words))["spool_bytes"] is None
    folder = tmp_path / "policyd.db-spool"
    with closing(spooled(folder)), closing(SpoolReader(folder)) as reader:
        found = json.loads(ask(url, *words))
        assert found["spool_bytes"] == sum(one.stat().st_size for one in folder.glob("*.jsonl"))
        assert 60 <= found["spool_age"] < 3600
        assert Shipper(StoreDestination(store), reader).ship() == 1
        found = json.loads(ask(url, *words))
        assert (found["decisions"], found["spool_bytes"], found["spool_age"]) == (1, 0, None)
        other = json.loads(ask(url, *words, "--spool", str(tmp_path / "other")))
        assert other["spool_bytes"] is None


def test_the_status_of_a_read_only_database(store: Store, url: str) -> None:
    """The status of a database that takes no changes says so, with all the rest."""
    store.log.append([record(NOW)])
    assert json.loads(ask(url, "logs", "status", "--json"))["database_problem"] is None
    with taking_changes() as allow:
        allow(False)
        found = json.loads(ask(url, "logs", "status", "--json"))
    assert found["decisions"] == 1
    assert "readonly database; make the file and its folder writable" in found["database_problem"]


def test_the_status_without_the_database(url: str, tmp_path: Path) -> None:
    """Without the database the status prints what this machine knows, and fails."""
    with closing(spooled(tmp_path / "policyd.db-spool")):
        done = invoke("policyd", "logs", "status", "--json", "--database-url", url)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["spool_bytes"] > 0
    assert found["spool_age"] >= 60
    assert found["snapshot_revision"] is None
    assert found["database_problem"] in done.stderr.decode()
    assert "there is no database" in found["database_problem"]


def test_shown_by_any_id(store: Store, url: str) -> None:
    """`policyd logs show` takes any ID that leads to one request alone."""
    one = record(NOW, request_id="req-1", trace_id="t-1")
    store.log.append([one, denied(NOW, trace_id="t-1"), outcome(one, openai_id="chatcmpl-1")])
    for any_id in (one.id, f"{one.id[:8]} {one.id[8:]}", "req-1", "chatcmpl-1"):
        assert json.loads(ask(url, "logs", "show", any_id, "--json"))["id"] == one.id
    assert len(listed(url, "--any-id", "t-1")) == 2
    assert [each["id"] for each in listed(url, "--any-id", "t-1", "--user", "ada")] == [one.id]
    done = invoke("policyd", "logs", "show", "t-1", "--database-url", url)
    assert "several requests have this ID" in done.stderr.decode()


def test_refused_keys(store: Store, url: str) -> None:
    """Refused keys are counted apart, by source, and no sample can control the terminal."""
    assert "All requests of this period" in ask(url, "logs", "refused")
    minute = int(NOW.timestamp()) // 60
    sample = RefusedKey(
        decision_id(NOW), RefusedKeyReason.MISSING, "192.0.2.1", user_agent="\x1b[2J"
    )
    store.log.append([RefusedKeyCount("a", 0, minute, "192.0.2.1", 5, 2, 0), sample])
    store.log.append([RefusedKeyCount("a", 0, minute, "", 0, 1, 0)])
    found = json.loads(ask(url, "logs", "status", "--json"))
    assert (found["decisions"], found["refused_keys"]) == (0, 8)
    assert "refused_keys        8\n" in ask(url, "logs", "status")
    shown = ask(url, "logs", "refused")
    assert "192.0.2.1" in shown
    assert "(not known)" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)
    found = json.loads(ask(url, "logs", "refused", "--json"))
    assert [(one["source"], one["requests"]) for one in found["sources"]] == [
        ("192.0.2.1", 7),
        ("", 1),
    ]
    [told] = found["samples"]
    assert (told["id"], told["reason"]) == (sample.id, "missing")
    assert json.loads(ask(url, "logs", "refused", "--since", "0s", "--json"))["samples"] == []
    done = invoke("policyd", "logs", "show", sample.id, "--database-url", url)
    assert "API key was refused" in done.stderr.decode()


def test_refused_keys_of_an_older_policyd(store: Store, url: str) -> None:
    """The refused keys that an older policyd logged count as no denials."""
    store.log.append([denied(NOW, key_id="", mode=None, status=403), one := denied(NOW)])
    assert [each["id"] for each in listed(url, "--decision", "denied")] == [one.id]
    assert {each["verdict"] for each in listed(url)} == {"denied", "key_refused"}


def test_a_user_that_is_not_named(store: Store, url: str) -> None:
    """The log distinguishes a user whose identifier is unknown from no user."""
    store.log.append([record(NOW, end_user="")])
    assert "(not named)" in ask(url, "logs", "list")


def test_hostile_texts_in_a_terminal(store: Store, url: str) -> None:
    """No text from a client can control the terminal."""
    hostile = record(NOW, end_user="\x1b[2J\u202e", model="a\nb\x07", user_agent="\x9b31m")
    store.log.append([hostile])
    shown = ask(url, "logs", "list") + ask(url, "logs", "show", hostile.id)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert "\\u202e" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("list", "--since", "yesterday"), "is not a moment"),
        (("list", "--until", "99999999999d"), "is not a moment"),
        (("list", "--since", "0001-01-01T00:00+05:00"), "is not a moment"),
        (("list", "--after", "x"), "ID of a decision"),
        (("list", "--decision", "blocked"), "would_deny"),
        (("show", "x"), "has no decision"),
        (("export", "--output", "/nowhere/log.csv"), "No such file"),
    ],
)
def test_bad_input(store: Store, url: str, words: tuple[str, ...], message: str) -> None:
    """A wrong argument is rejected, and the error names what is wrong."""
    done = invoke("policyd", "logs", *words, "--database-url", url)
    assert done.returncode in (1, 2)
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_an_export(store: Store, url: str, tmp_path: Path) -> None:
    """The file holds every matching decision, in either form, and no formula for a spreadsheet. The
    audit trail tells the form and the filters."""
    entries = [record(NOW - timedelta(seconds=n), end_user="=1+1") for n in range(2500)]
    store.log.append(entries)
    lines = ask(url, "logs", "export").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [one.id for one in entries]
    file = tmp_path / "log.csv"
    ask(url, "logs", "export", "--format", "csv", "--output", str(file), "--user", "=1+1")
    noted = [one.after for one in store.audit.list(action=Action.LOG_EXPORT)]
    assert noted == [
        {"format": "csv", "filter": "user=%3D1%2B1"},
        {"format": "jsonl", "filter": ""},
    ]
    rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    assert [row["id"] for row in rows] == [one.id for one in entries]
    assert {row["user"] for row in rows} == {"'=1+1"}


def test_tail(store: Store, url: str) -> None:
    """`policyd logs tail` prints the latest decisions, then each new one once, until Ctrl-C."""
    store.log.append([record(NOW - timedelta(seconds=n)) for n in range(5)])
    words = ("policyd", "logs", "tail", "--json", "--lines", "1", "--database-url", url)
    running = Program(*words, ready='"id"')
    late, new = record(datetime.now(UTC) - timedelta(seconds=5)), denied(datetime.now(UTC))
    store.log.append([new])
    store.log.append([late])
    while len(running.output) < 3:
        assert running.poll() is None, running.errors
        time.sleep(0.1)
    status = running.stop(signal.SIGINT)
    assert {json.loads(line)["id"] for line in running.output[1:]} == {late.id, new.id}
    assert status == 130, running.errors
    assert not any("Traceback" in line for line in running.errors)


@pytest.fixture
def key_id(store: Store) -> str:
    return store.keys.create("app")[0].id


def logged(key_id: str) -> list[Record]:
    """Requests of two kinds that enforcing would deny, and some that it would not."""
    given: dict[str, Any] = {"key_id": key_id, "verdict": Verdict.ALLOWED, "flags": ""}
    browser = [denied(NOW, **given, user_agent="browser", model="gpt-4o") for _ in range(3)]
    script = [denied(NOW, **given, user_agent="script", operation="embedding") for _ in range(2)]
    header = [denied(NOW, **given, overrides="false")]
    successor = [denied(NOW, **given, body_safety_identifier=UserState.VALID)]
    return [*browser, *script, *header, *successor, record(NOW, key_id=key_id), denied(NOW)]


def test_a_simulation(store: Store, url: str, key_id: str) -> None:
    """A simulation decides the log's requests once more, by settings that are not saved."""
    store.log.append(logged(key_id))
    found = json.loads(ask(url, "simulate", key_id, "--json"))
    assert (found["requests"], found["blocked"]) == (8, 5)
    assert found["by_user_agent"] == {"browser": 3, "script": 2}
    assert found["by_operation"] == {"chat_completion": 3, "embedding": 2}
    assert found["by_model"]["gpt-4o"] == 3
    assert len(found["examples"]) == 5
    locked = json.loads(ask(url, "simulate", key_id, "--json", "--override", "locked"))
    assert locked["blocked"] == 6
    accepting = ("--accept", "user")
    assert json.loads(ask(url, "simulate", key_id, "--json", *accepting))["blocked"] == 6
    off = ("--enforce-user-ids", "off")
    assert json.loads(ask(url, "simulate", key_id, "--json", *off))["blocked"] == 0
    assert "5 of 8 requests (62.5%) would have been blocked" in ask(url, "simulate", key_id)
    assert TABLE.original_of(store.keys.get(key_id).policies).mode is None


def test_a_simulation_of_any_policy(store: Store, url: str, key_id: str) -> None:
    """A simulation decides by the policies that are given, and by the key's others as they are."""
    given: dict[str, Any] = {"key_id": key_id, "model_state": ModelState.GIVEN, "model": "gpt-4o"}
    older = record(NOW, key_id=key_id, model="")
    store.log.append([older, record(NOW, **given, token_limit=900), record(NOW, **given)])

    def simulated(*words: str) -> tuple[int, int, int]:
        found = json.loads(ask(url, "simulate", key_id, "--json", *words))
        return found["blocked"], found["flagged"], found["unknown"]

    assert simulated("--policy", "max_tokens=enforce:500") == (1, 0, 2)
    assert simulated("--policy", "max_tokens=audit:500") == (0, 1, 2)
    assert simulated("--policy", "max_tokens=enforce:900") == (0, 0, 2)
    assert simulated("--policy", "disabled_models=enforce:gpt-4*") == (2, 0, 1)
    text = ask(url, "simulate", key_id, "--policy", "max_tokens=audit:500")
    assert 'With "default", override any, max_tokens=audit:500, accepting' in text
    assert "1 would have passed, and been flagged." in text
    assert "Of 2, the log does not have what these policies judge." in text
    assert store.keys.get(key_id).policies == TABLE.with_original(None, Override.ANY)


def test_a_simulation_of_nothing(store: Store, url: str, key_id: str) -> None:
    """A simulation handles a key without requests and a key that does not exist."""
    assert "0 of 0 requests would" in ask(url, "simulate", key_id)
    for words, message in (
        (("key_x",), "no API key"),
        ((key_id, "--accept", "email"), "no end user can stand"),
    ):
        done = invoke("policyd", "simulate", *words, "--database-url", url)
        assert message in done.stderr.decode()
