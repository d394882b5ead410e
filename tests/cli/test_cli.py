"""The command `policyd`, as a user or a script runs it."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from gateway.cli import main as gateway
from policyd.cli.main import main
from policyd.cli.options import OPTIONS
from policyd.command.groups import LazyGroup
from tests.support.commands import invoke
from tests.support.processes import Policyd, run


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/policyd.db"


def keys(database: str, *words: str) -> Any:
    """The output of `policyd keys … --json`."""
    done = invoke("policyd", "keys", *words, "--database-url", database, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def explain(database: str, *words: str, **options: Any) -> tuple[int, dict[str, Any]]:
    """The exit status of `policyd explain` and its output."""
    done = invoke("policyd", "explain", *words, "--database-url", database, "--json", **options)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def test_the_life_of_a_key(database: str) -> None:
    """Keys are created, listed, shown, changed and revoked; the secret is shown once."""
    made = keys(database, "create", "app", "--enforce-user-ids", "enforce", "--override", "locked")
    secret = made.pop("key")
    assert re.fullmatch(r"up-[0-9a-zA-Z]{48}", secret)
    assert made["name"] == "app"
    assert made["enforce_user_ids"] == "enforce"
    assert made["override"] == "locked"
    assert made["accept"] == ["user", "safety_identifier"]
    assert keys(database, "list") == [made]
    assert keys(database, "show", made["id"]) == made

    accept = ("--accept", "safety_identifier")
    changed = keys(database, "set", made["id"], "--enforce-user-ids", "audit", *accept)
    assert changed["enforce_user_ids"] == "audit"
    assert changed["override"] == "locked"
    assert changed["accept"] == ["safety_identifier"]
    default = keys(database, "set", made["id"], "--enforce-user-ids", "default")
    assert default["enforce_user_ids"] is None

    assert keys(database, "revoke", made["id"])["revoked_at"]
    assert keys(database, "list") == []
    assert [key["id"] for key in keys(database, "list", "--revoked")] == [made["id"]]


def test_for_people(database: str) -> None:
    """Without --json the output is readable, and an empty list names the next step."""
    missing = invoke("policyd", "keys", "list", "--database-url", database)
    assert missing.returncode == 1
    assert b"there is no database" in missing.stderr
    gone = keys(database, "create", "gone")["id"]
    keys(database, "revoke", gone)
    empty = invoke("policyd", "keys", "list", "--database-url", database)
    assert b"policyd keys create NAME" in empty.stderr
    made = invoke("policyd", "keys", "create", "my app", "--database-url", database)
    assert re.search(rb"\nup-[0-9a-zA-Z]{48}\n", made.stdout)
    listed = invoke("policyd", "keys", "list", "--database-url", database)
    assert b"my app" in listed.stdout
    assert b"up-" not in listed.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["keys", "show", "key_0"], "no API key has the ID 'key_0'"),
        (
            ["explain", "--key", "x", "--has-user", "--database-url", "sqlite:///no.db"],
            "no database",
        ),
    ],
)
def test_errors(database: str, words: list[str], message: str) -> None:
    """An error is named on stderr, with status 1 and without a traceback."""
    keys(database, "create", "first")
    done = invoke("policyd", *words, env={"POLICYD_DATABASE_URL": database})
    assert done.returncode == 1
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_an_error_of_a_process(database: str) -> None:
    """A command that runs as a process reports an error in the same way."""
    keys(database, "create", "first")
    done = run("policyd", "keys", "show", "key_0", env={"POLICYD_DATABASE_URL": database})
    assert done.returncode == 1
    assert "no API key has the ID 'key_0'" in done.stderr.decode()
    assert b"Traceback" not in done.stderr


# Ports that are free, as policyd looks at them first.
PORTS = ("--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("words", "env", "message"),
    [
        (["keys", "set", "key_0"], {}, "nothing to change"),
        (["keys", "create", ""], {}, "a key's name has 1 to 200"),
        (["keys", "create", "x", "--accept", "email"], {}, "in which no end user can stand"),
        (["keys", "create", "x", "--override", "never"], {}, "'never' is not one of"),
        (["explain", "--key", "x"], {}, "give one of --has-user, --no-user and --body"),
        (["explain", "--key", "x", "--has-user", "--header", "no"], {}, "'NAME: VALUE'"),
        (["serve", *PORTS, "--database-url", "sqlite://"], {}, "must name a file"),
        (
            ["serve", *PORTS, "--database-url", "postgresql+psycopg://h:s3cret"],
            {},
            "is not usable",
        ),
        (["serve", "--grpc", "nowhere"], {}, "--grpc takes HOST:PORT"),
        (["serve", "--grpc", "0.0.0.0:0"], {}, "--insecure"),
        (["serve"], {"POLICYD_WORKER": "2"}, "did you mean POLICYD_WORKERS?"),
        (["serve"], {"POLICYD_WORKERS": "many"}, "'many' is not a valid integer"),
        (
            ["serve", *PORTS, "--database-url", "nonsense"],
            {},
            "--database-url is not usable",
        ),
    ],
)
def test_wrong_settings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    env: dict[str, str],
    message: str,
) -> None:
    """A wrong command or setting is named on stderr, with status 2."""
    # In a folder of its own: with PostgreSQL, a server makes its spool and token where it starts.
    monkeypatch.chdir(tmp_path)
    database = {"POLICYD_DATABASE_URL": f"sqlite:///{tmp_path}/policyd.db"}
    config = {"POLICYD_CONFIG": str(_empty_config(tmp_path))}
    done = invoke("policyd", *words, env=config | database | env)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert b"s3cret" not in done.stderr


OTHERS = [
    ("POLICYD_ENFORCE_USER_IDS", "enforce", "did you mean --default-mode (POLICYD_DEFAULT_MODE)"),
    ("POLICYD_OVERRIDE", "locked", "it is for policyd simulate, policyd keys create"),
    ("POLICYD_ACCEPT", "user", "so take it out here"),
    ("POLICYD_KEY", "up-x", "it is for policyd doctor, policyd explain, so take it out here"),
    ("POLICYD_DATA", "folder", "it is for policyd demo, so take it out here"),
    ("POLICYD_JSON", "true", "and others, so take it out here"),
]


@pytest.mark.parametrize(("name", "value", "message"), OTHERS)
def test_settings_of_other_commands(tmp_path: Path, name: str, value: str, message: str) -> None:
    """A server rejects a setting that it would not follow, in its environment and in its file, and
    suggests the one that was meant.
    """
    refused = invoke("policyd", "serve", "--grpc", "nowhere", env={name: value})
    assert (refused.returncode, message in refused.stderr.decode()) == (2, True), refused.stderr
    assert f"{name}, which means nothing to policyd serve" in refused.stderr.decode()
    config = tmp_path / "policyd.yaml"
    spelling = name.removeprefix("POLICYD_").lower().replace("_", "-")
    config.write_text(f"workers: '2'\n{spelling}: '{value}'\n")
    refused = invoke("policyd", "serve", "--grpc", "nowhere", "--config", str(config))
    assert (refused.returncode, message in refused.stderr.decode()) == (2, True), refused.stderr
    assert f"{spelling}, which means nothing to policyd serve" in refused.stderr.decode()


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_every_setting_is_a_servers_or_refused(command: str) -> None:
    """A server's command rejects every setting of another command."""
    main.load()
    server = main.get_command(click.Context(main), command)
    assert server is not None
    own = {option.envvar for option in server.params}
    others = OPTIONS.variables - own
    assert len(others) > 10
    for name in others:
        refused = CliRunner().invoke(main, [command, "--grpc", "nowhere"], env={name: "x"})
        assert refused.exit_code == 2
        assert f"{name}, which means nothing to" in refused.output


def test_one_environment_for_all_commands(tmp_path: Path) -> None:
    """The other commands run in a server's environment and with its file."""
    url = f"sqlite:///{tmp_path}/policyd.db"
    config = tmp_path / "policyd.yaml"
    config.write_text(f"database-url: {url}\ngrpc: 127.0.0.1:1\ndefault-mode: enforce\n")
    env = {"POLICYD_WORKERS": "2", "POLICYD_LOG_RETENTION": "9", "POLICYD_CONFIG": str(config)}
    for words in (("keys", "create", "x"), ("keys", "list"), ("logs", "status")):
        assert invoke("policyd", *words, env=env).returncode == 0


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"POLICYD_MODE": "enforce"}, "did you mean --default-mode"),
        ({"POLICYD_ENFORCE": "true"}, "did you mean --default-mode"),
        ({"POLICYD_DEFAULT_MOD": "enforce"}, "did you mean POLICYD_DEFAULT_MODE?"),
        ({"POLICYD_Default_Mode": "enforce"}, "not read: did you mean POLICYD_DEFAULT_MODE?"),
        ({"policyd_default_mode": "enforce"}, "not read: did you mean POLICYD_DEFAULT_MODE?"),
        ({"POLICYD_SOMETHING": "x"}, "there are POLICYD_"),
    ],
)
def test_variables_that_no_command_reads(env: dict[str, str], message: str) -> None:
    """A variable whose name is close to a setting's, or in another letter case, is rejected."""
    for words in (("serve", "--grpc", "nowhere"), ("keys", "list")):
        refused = invoke("policyd", *words, env=env)
        assert refused.returncode == 2
        assert message in refused.stderr.decode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("default-mode: enforce\ndefault-mode: off", "sets default-mode twice"),
        ("default-mode: enforce\ndefault_mode: off", "sets default_mode twice"),
        ("config: other.yaml", "cannot name another file"),
        ("mode: enforce", "did you mean --default-mode"),
        ("default-mod: enforce", "did you mean default-mode?"),
    ],
)
def test_lines_that_would_not_count(tmp_path: Path, content: str, message: str) -> None:
    """A file must name each setting once, and by its own name."""
    config = tmp_path / "policyd.yaml"
    config.write_text(content + "\n")
    refused = invoke("policyd", "serve", "--grpc", "nowhere", "--config", str(config))
    assert refused.returncode == 2
    assert message in refused.stderr.decode()


def _empty_config(folder: Path) -> Path:
    file = folder / "empty.yaml"
    file.touch()
    return file


def test_where_settings_come_from(tmp_path: Path) -> None:
    """Flags beat the environment, which beats the file; a misspelt name in the file is rejected."""
    by_file, by_env, by_flag = (f"sqlite:///{tmp_path}/{name}.db" for name in ("a", "b", "c"))
    config = tmp_path / "policyd.yaml"
    config.write_text(f"database-url: {by_file}\nenforce_user_ids: audit\n")
    create = ("policyd", "keys", "create", "x", "--json", "--config", str(config))
    made = invoke(*create)
    assert json.loads(made.stdout)["enforce_user_ids"] == "audit"
    assert (tmp_path / "a.db").exists()
    invoke(*create, env={"POLICYD_DATABASE_URL": by_env})
    assert (tmp_path / "b.db").exists()
    invoke(*create, "--database-url", by_flag, env={"POLICYD_DATABASE_URL": by_env})
    assert (tmp_path / "c.db").exists()

    config.write_text(f"database_url: {by_file}\nenforce-user-ids: off\njson: true\n")
    made = invoke("policyd", "keys", "create", "y", "--config", str(config))
    assert json.loads(made.stdout)["enforce_user_ids"] == "off"
    secret = json.loads(made.stdout)["key"]
    config.write_text(
        f"database_url: {by_file}\nheader:\n- 'x-usagepanda-enforce-user-ids: true'\n"
    )
    asked = ("policyd", "explain", "--key", secret, "--no-user", "--config", str(config))
    assert invoke(*asked).returncode == 1

    for wrong in ("workers: [1, 2]", "grpc:", "tls-cert: {a: 1}", "header: x"):
        config.write_text(wrong + "\n")
        refused = invoke(*asked)
        assert refused.returncode == 2
        assert b"it takes" in refused.stderr
    config.write_text("databse_url: x\n")
    refused = invoke(*create)
    assert refused.returncode == 2
    assert b"did you mean database-url?" in refused.stderr
    config.write_text("- just\n- a list\n")
    assert b"NAME: VALUE" in invoke(*create).stderr
    config.write_text("a: [")
    assert b"cannot be read" in invoke(*create).stderr


def test_explain(database: str, tmp_path: Path) -> None:
    """`policyd explain` tells the decision and its reason, and its status tells whether the request
    would be denied.
    """
    secret = keys(database, "create", "x", "--enforce-user-ids", "enforce")["key"]
    status, denied = explain(database, "--key", secret, "--no-user")
    assert status == 1
    assert denied["decision"] == "deny"
    assert denied["denial"]["http_status"] == 422
    assert denied["source"] == "key"

    status, allowed = explain(database, "--key", secret, "--has-user")
    assert (status, allowed["decision"]) == (0, "allow")

    header = ("--header", "X-UsagePanda-Enforce-User-IDs: false")
    status, overridden = explain(database, "--key", secret, "--no-user", *header)
    assert (status, overridden["source"]) == (0, "header")

    body = tmp_path / "body.json"
    body.write_text('{"user": " "}')
    status, blank = explain(
        database,
        "--key",
        secret,
        "--body",
        str(body),
        "--method",
        "POST",
        "--path",
        "/v1/EMBEDDINGS",
    )
    assert (status, blank["user_state"], blank["operation"]) == (1, "blank", "embedding")
    status, piped = explain(database, "--key", secret, "--body", "-", stdin=b'{"user": "a"}')
    assert (status, piped["user_state"]) == (0, "valid")

    from_environment = {
        "POLICYD_HEADER": "x-other: 1\nx-usagepanda-enforce-user-ids: false",
        "POLICYD_HAS_USER": "false",
    }
    status, overridden = explain(database, "--key", secret, env=from_environment)
    assert (status, overridden["source"]) == (0, "header")

    status, outside = explain(
        database, "--key", secret, "--no-user", "--method", "GET", "--path", "/v1/models"
    )
    assert (status, outside["in_scope"]) == (0, False)
    status, unknown = explain(database, "--key", "up-unknown", "--has-user")
    assert (status, unknown["denial"]["http_status"]) == (1, 403)


def test_explain_for_people(database: str) -> None:
    """Without --json the explanation begins with a sentence."""
    secret = keys(database, "create", "x", "--enforce-user-ids", "enforce")["key"]
    done = invoke(
        "policyd", "explain", "--no-user", "--database-url", database, env={"POLICYD_KEY": secret}
    )
    assert done.stdout.decode().startswith("Denied: the field user is absent.")
    assert secret.encode() not in done.stdout + done.stderr


def test_a_change_reaches_the_running_server(policyd: Policyd) -> None:
    """A change by one process is in force in another, at the revision that the first printed."""
    made = keys(policyd.database_url, "create", "x", "--enforce-user-ids", "off")
    policyd.reach(made["revision"])
    changed = keys(policyd.database_url, "set", made["id"], "--enforce-user-ids", "enforce")
    assert changed["revision"] > made["revision"]
    policyd.reach(changed["revision"])


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_stopping(tmp_path: Path, workers: str, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end policyd cleanly: status 0, no traceback, nothing left behind."""
    server = Policyd(tmp_path, "--workers", workers)
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    left = [Path(f"/proc/{pid}") for pid in children.read_text().split()]
    # The background worker, and the workers where they are processes of their own.
    assert len(left) == (3 if workers == "2" else 1)
    assert server.stop(number) == 0
    assert not any("Traceback" in line for line in server.errors)
    assert not any(process.exists() for process in left)


@pytest.mark.slow
def test_workers_answer_on_one_port(tmp_path: Path) -> None:
    """Several workers share one port, which no other process can take."""
    server = Policyd(tmp_path, "--workers", "2")
    try:
        assert server.create_key("enforce").startswith("up-")
        second = run(
            "policyd", "serve", "--grpc", server.grpc, "--database-url", server.database_url
        )
        assert second.returncode == 1
        assert f"--grpc {server.grpc} cannot be listened on" in second.stderr.decode()
    finally:
        server.stop()


def test_help_names_every_setting() -> None:
    """The help describes each option and names its variable."""
    done = invoke("policyd", "serve", "--help")
    text = done.stdout.decode().replace("\n", " ")
    for flag in set(re.findall(r" (--[a-z-]+) ", text)) - {"--help", "--decide"}:  # The gateway's.
        if f"/ {flag} " in text:
            continue  # The negative form of a switch, which shares the variable.
        name = flag.removeprefix("--").replace("-", "_").upper()
        assert re.search(rf"env\s+var:\s+POLICYD_{name}\b", text), flag


def test_as_a_module() -> None:
    """Importing the client loads none of the server's packages."""
    program = (
        "import sys, policyd.client, policyd.descriptor.body, policyd.engine.endpoints; "
        "import policyd.v1.policy_pb2; "
        "names = ('sqlalchemy', 'click', 'alembic', 'uvicorn'); "
        "sys.exit(any(name in sys.modules for name in names))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "other"),
    [
        (["--version"], "policyd.policies"),
        (["--help"], "policyd.policies"),
        (["serve", "--help"], "policyd.store"),
        (["policies"], "policyd.store"),
    ],
)
def test_what_a_short_command_loads(words: list[str], other: str) -> None:
    """A short command loads nothing that only another command, a database or a server needs."""
    program = (
        "import sys; from policyd.cli.main import main;"
        f"main({words}, standalone_mode=False);"
        "names = {'sqlalchemy', 'alembic', 'grpc', 'uvicorn', 'starlette', 'yaml', 'gateway'};"
        f"names |= {{'re2', '{other}'}};"
        "sys.exit(', '.join(names & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")


@pytest.mark.parametrize("group", [main, gateway], ids=["policyd", "policyd-gateway"])
def test_the_list_of_commands(group: LazyGroup) -> None:
    """The list shows the first line of each command's help without loading the command."""
    context = click.Context(group)
    for name, lazy in group.lazy.items():
        command = group.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(limit=200) == lazy.help
    assert [*main.lazy] == sorted(main.lazy)
    assert {"demo", "explain", "keys", "logs", "serve", "simulate"} <= {*main.lazy}


@pytest.mark.slow
def test_settings_of_commands_that_are_not_loaded(tmp_path: Path) -> None:
    """A command ignores the settings of other commands, though they are not loaded."""
    url = f"sqlite:///{tmp_path}/policyd.db"
    config = tmp_path / "policyd.yaml"
    config.write_text("older-than: 30d\nsample: 'false'\n")
    env = {"POLICYD_DRY_RUN": "true", "POLICYD_GATEWAY": "127.0.0.1:1"}
    made = run("policyd", "keys", "create", "x", "--database-url", url, env=env)
    assert made.returncode == 0, made.stderr
    listed = ("policyd", "keys", "list", "--database-url", url, "--config", str(config))
    assert run(*listed).returncode == 0
