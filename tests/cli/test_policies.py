"""Any policy on the command line: setting, overriding, listing and trying it."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from policyd.policies import TABLE
from tests.support.commands import invoke
from tests.support.databases import put_database

CHAT = ("--method", "POST", "--path", "/v1/chat/completions")


@pytest.fixture
def url(tmp_path: Path) -> str:
    found = f"sqlite:///{tmp_path}/policyd.db"
    put_database(found)
    return found


def ask(url: str, *words: str, status: int = 0, env: dict[str, str] | None = None) -> str:
    """What `policyd …` prints on stdout, or else on stderr."""
    done = invoke("policyd", *words, "--database-url", url, env=env)
    assert done.returncode == status, done.stderr.decode()
    return (done.stdout or done.stderr).decode()


def told(url: str, *words: str, status: int = 0, env: dict[str, str] | None = None) -> Any:
    """What `policyd … --json` prints."""
    return json.loads(ask(url, *words, "--json", status=status, env=env))


def setting(mode: str | None, value: str = "", override: str | None = None) -> dict[str, Any]:
    return {"mode": mode, "value": value, "override": override}


def test_any_policy_of_a_key(url: str) -> None:
    """A key is made with policies, each of which is changed alone."""
    words = ("--policy", "max_tokens=enforce:500", "--policy", "disabled_models=audit: gpt-4*, o1")
    made = told(url, "keys", "create", "app", *words, "--policy-override", "max_tokens=locked")
    assert made["policies"]["max_tokens"] == setting("enforce", "500", "locked")
    assert made["policies"]["disabled_models"] == setting("audit", "gpt-4*,o1")
    assert list(made["policies"]) == [name for name in TABLE.by_name if name in made["policies"]]

    def change(*words: str) -> Any:
        return told(url, "keys", "set", made["id"], *words)["policies"]

    changed = change("--policy", "user_format=audit:no_email,min=3", "--policy", "max_tokens=off")
    assert changed["user_format"] == setting("audit", "min=3,no_email")
    assert changed["max_tokens"] == setting("off", "", "locked")
    assert changed["disabled_models"] == setting("audit", "gpt-4*,o1")
    assert change("--policy", "max_tokens=default")["max_tokens"] == setting(None, "", "locked")
    assert "max_tokens" not in change("--policy-override", "max_tokens=default")
    assert "disabled_models" not in change("--policy", "disabled_models=default")


def test_the_older_flags_are_the_original_policy(url: str) -> None:
    """The flags and fields of before are a view of one of the policies."""
    made = told(url, "keys", "create", "app", "--enforce-user-ids", "audit", "--override", "locked")
    assert made["policies"] == {"enforce_user_ids": setting("audit", "", "locked")}
    words = ("--policy", "enforce_user_ids=enforce", "--policy-override", "enforce_user_ids=any")
    changed = told(url, "keys", "set", made["id"], *words)
    assert (changed["enforce_user_ids"], changed["override"]) == ("enforce", "any")
    twice = ("--enforce-user-ids", "audit", "--policy", "enforce_user_ids=off")
    text = ask(url, "keys", "set", made["id"], *twice, status=2)
    assert "enforce_user_ids is set twice: set it once" in text


def test_policies_from_the_environment_and_a_file(url: str, tmp_path: Path) -> None:
    """The environment has a policy a line, and a file a list of them."""
    lines = "max_tokens=enforce:500\nuser_format=audit:pattern=[a-z ]+"
    made = told(url, "keys", "create", "app", env={"POLICYD_POLICY": lines})
    assert made["policies"]["user_format"] == setting("audit", "pattern=[a-z ]+")
    config = tmp_path / "policyd.yaml"
    config.write_text("policy:\n- max_tokens=audit:7\npolicy-override:\n- max_tokens=locked\n")
    made = told(url, "keys", "create", "other", "--config", str(config))
    assert made["policies"]["max_tokens"] == setting("audit", "7", "locked")
    # Another command has an option of the same name, which is not meant.
    assert (
        invoke("policyd", "logs", "list", "--config", str(config), "--database-url", url).returncode
        == 0
    )


def test_a_long_list_for_people(url: str) -> None:
    """A list of keys shortens what is set; a key's own page shows all of it."""
    models = ",".join(f"model-{number}" for number in range(50))
    made = told(url, "keys", "create", "app", "--policy", f"allowed_models=enforce:{models}")
    listed = ask(url, "keys", "list")
    assert "OTHER POLICIES" in listed
    assert "allowed_models=enforce:model-0,model-1,model-2…" in listed
    assert f"allowed_models=enforce:{models}" in ask(url, "keys", "show", made["id"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--policy", "max_token=off"), "there is no policy 'max_token': did you mean max_tokens?"),
        (("--policy", "poems=off"), "the policies are max_tokens, max_prompt_chars"),
        (("--policy", "max_tokens"), "'max_tokens' sets nothing: give NAME=MODE[:VALUE]"),
        (("--policy", "max_tokens="), "max_tokens takes off, audit:N or enforce:N"),
        (("--policy", "max_tokens=enforce:1e3"), "a limit is a whole number from 1 to"),
        (("--policy", "max_tokens=off", "--policy", "max_tokens=audit:1"), "is set twice"),
        (("--policy-override", "max_tokens=never"), "takes any, tighten_only, locked, not 'never'"),
        (("--policy-override", "user_format=locked"), "user_format has no header"),
        (("--accept", "email"), "in which no end user can stand"),
    ],
)
def test_bad_settings(url: str, words: tuple[str, ...], message: str) -> None:
    """A setting that makes no sense is rejected before anything changes, with cause and fix."""
    made = told(url, "keys", "create", "app")
    for command in (("keys", "create", "other"), ("keys", "set", made["id"])):
        assert message in ask(url, *command, *words, status=2)
    assert message in ask(url, "simulate", made["id"], *words, status=2)
    assert told(url, "keys", "list") == [{name: made[name] for name in made if name != "key"}]


@pytest.mark.parametrize(
    ("accept", "message"),
    [
        ("safety_identifier", "On completion, image_variation, embedding, chatkit_session, none"),
        ("user", "no request there has an end user that counts"),
        ("user,safety_identifier", ""),
    ],
)
def test_places_that_endpoints_do_not_have(url: str, accept: str, message: str) -> None:
    """A key that accepts no place of some endpoint is made, with a warning."""
    done = invoke("policyd", "keys", "create", "x", "--accept", accept, "--database-url", url)
    assert done.returncode == 0
    assert message in done.stderr.decode()
    assert bool(message) is bool(done.stderr)


def test_all_policies_are_listed() -> None:
    """`policyd policies` shows how to set and override each policy, without a database."""
    done = invoke("policyd", "policies")
    text = done.stdout.decode()
    found = json.loads(invoke("policyd", "policies", "--json").stdout)
    assert [one["name"] for one in found] == list(TABLE.by_name)
    for policy, one in zip(TABLE.policies, found, strict=True):
        assert f"\n{policy.name}: {policy.title}\n  {policy.hint}\n" in f"\n{text}"
        assert (one["flag"], one["header"] or "") == (policy.flag, policy.header)
        assert f"flag        {policy.flag}" in text
        assert one["setting"] == policy.kind.usage


def test_each_policy_is_explained(url: str, tmp_path: Path) -> None:
    """`policyd explain` tells what each policy found, and which is not set."""
    words = ("--policy", "max_tokens=enforce:500", "--policy", "disabled_models=audit:gpt-4*")
    key = told(url, "keys", "create", "app", *words)["key"]
    body = tmp_path / "body.json"
    body.write_text('{"model": "gpt-4o", "max_tokens": 900, "messages": [], "user": "ada"}')
    asked = ("explain", "--key", key, "--body", str(body), *CHAT)
    found = told(url, *asked, status=1)
    assert found["flags"] == ["policy_max_tokens", "policy_disabled_models"]
    first, original, models = found["policies"]
    assert first == {
        "policy": "max_tokens",
        "mode": "enforce",
        "value": "500",
        "source": "key",
        "override": "any",
        "override_ignored": None,
        "verdict": "violated",
        "violation": "the token limit is 900, and has to be from 1 to 500",
        "message": "Config set to max tokens of: 500; request was: 900",
    }
    assert (original["policy"], original["verdict"]) == (TABLE.original.name, "off")
    assert (models["mode"], models["verdict"]) == ("audit", "violated")
    text = ask(url, *asked, status=1)
    assert "max_tokens          enforce:500 by the key; violated: the token limit is 900" in text
    assert "max_prompt_chars    not set" in text
    raised = ("--header", "x-usagepanda-max-tokens: 1000")
    assert "max_tokens          enforce:1000 by the header; kept" in ask(url, *asked, *raised)


def test_a_setting_is_tried(url: str, tmp_path: Path) -> None:
    """A policy is tried on a key whose settings stay as they are."""
    made = told(url, "keys", "create", "app", "--policy", "max_tokens=enforce:500")
    body = tmp_path / "body.json"
    body.write_text('{"max_tokens": 900, "messages": [], "user": "ada@example.com"}')
    asked = ("explain", "--key", made["key"], "--body", str(body), *CHAT)
    tried = ("--policy", "max_tokens=default", "--policy", "user_format=enforce:no_email")
    found = told(url, *asked, *tried, status=1)
    assert found["flags"] == ["policy_user_format"]
    assert "ada@example.com" not in json.dumps(found)
    assert told(url, "keys", "show", made["id"])["policies"] == made["policies"]
    elsewhere = ("--path", "/v1/embeddings", "--policy", "max_tokens=audit:1")
    [limit, *_] = told(url, *asked, *elsewhere)["policies"]
    assert limit["verdict"] == "out_of_scope"


def test_what_a_policy_needs(url: str) -> None:
    """An explanation without what a policy judges says what to give."""
    key = told(url, "keys", "create", "app", "--policy", "max_tokens=audit:500")["key"]
    text = ask(url, "explain", "--key", key, "--has-user", status=2)
    assert "Enforce Max Tokens needs token_limit or token_limit_state: give" in text
    assert "--body" in text


def test_a_policy_of_another_version(url: str, tmp_path: Path) -> None:
    """A setting of a policy that this version does not know is shown and kept, and denies."""
    made = told(url, "keys", "create", "app")
    with closing(sqlite3.connect(tmp_path / "policyd.db")) as database, database:
        written = json.dumps({"poems": [3, "\x1b[2J", None]})
        database.execute("UPDATE api_keys SET policies = ?", (written,))
    assert "poems=enforce:\\u001b[2J" in ask(url, "keys", "show", made["id"])
    changed = told(url, "keys", "set", made["id"], "--policy", "max_tokens=audit:5")
    assert changed["policies"]["poems"] == setting("enforce", "\x1b[2J")
    tried = ("--policy", "max_tokens=off")
    denied = told(url, "explain", "--key", made["key"], "--has-user", *tried, status=1)
    assert denied["denial"]["http_status"] == 503
    assert denied["policies"][-1]["verdict"] == "failed"
    shown = ask(url, "explain", "--key", made["key"], "--has-user", *tried, status=1)
    assert "poems               enforce:\\u001b[2J by the key; failed" in shown
