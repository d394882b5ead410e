"""`policyd apply` and `policyd export`, over the database and over a running server."""

import json
import re
import stat
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from policyd.engine.settings import ServerDefaults
from policyd.keys import api_key
from policyd.store import Store
from tests.support.commands import invoke
from tests.support.databases import open_store
from tests.support.running import beside


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of a policyd with a database of its own, and where its AdminService is."""
    folder = tmp_path_factory.mktemp("applied")
    with beside(folder) as running:
        yield folder, str(running.admin)


@pytest.fixture(params=["database", "server"])
def where(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Store, tuple[str, ...]]]:
    """A store without a key that is in force, and the options that name it or the server on it."""
    if request.param == "database":
        url = f"sqlite:///{tmp_path}/policyd.db"
        store = open_store(url)
        yield store, ("--database-url", url)
        store.close()
        return
    folder, admin = request.getfixturevalue("server")
    store = Store(f"sqlite:///{folder}/policyd.db")
    for key in store.keys.list():
        store.keys.revoke(key.id)
    store.apply([], ServerDefaults())
    yield store, ("--server", admin, "--token-file", str(folder / "admin-token"))
    store.close()


class Applying:
    """Writes declarations, and applies them."""

    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
        self.file = folder / "keys.yaml"
        self._options = options

    def __call__(self, text: str, *flags: str) -> subprocess.CompletedProcess[bytes]:
        self.file.write_text(text)
        return invoke("policyd", "apply", "-f", str(self.file), *flags, *self._options)

    def changes(self, text: str, *flags: str) -> dict[str, Any]:
        """What is changed, with --yes, as JSON."""
        done = self(text, "--yes", "--json", *flags)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def export(self) -> str:
        done = invoke("policyd", "export", *self._options)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()


KEYS = """\
version: 1
defaults:
  policies: {enforce_user_ids: audit, max_tokens: {mode: enforce, value: 900, override: locked}}
  end_user_headers: [x-forwarded-user]
  end_user_callers: [grpc]
keys:
  app:
    policies: {max_tokens: enforce:500, enforce_user_ids: {mode: enforce, override: locked}}
    accept: [user, header:x-forwarded-user]
    expires: 2100-01-31T00:00:00Z
  plain:
"""


def test_the_life_of_a_declaration(where: tuple[Store, tuple[str, ...]], tmp_path: Path) -> None:
    """A dry run tells and changes nothing; applying changes all at one revision, and again nothing;
    what is exported is as declared; --prune revokes what is not."""
    store, options = where
    apply = Applying(tmp_path, options)
    store.keys.create("older")
    revision = store.keys.changes_since(0).revision
    planned = apply(KEYS, "--dry-run")
    assert planned.returncode == 2
    assert b"+ key app is created" in planned.stdout
    assert b"    policies.max_tokens: enforce:500" in planned.stdout
    assert b"Would be: 2 keys created, defaults changed. Nothing was changed." in planned.stdout
    assert store.keys.changes_since(0).revision == revision

    done = apply(KEYS, "--yes")
    assert done.returncode == 0, done.stderr
    assert f"In force at revision {revision + 1}: 2 keys created" in done.stdout.decode()
    secrets = dict(re.findall(r"The secret of (\w+), which.*: (up-\w{48})", done.stdout.decode()))
    assert set(secrets) == {"app", "plain"}
    found = {key.name: key for key in store.keys.list()}
    assert {found[name].revision for name in secrets} == {revision + 1}
    for name, secret in secrets.items():
        settings = store.keys.in_force(api_key.digest(secret))
        assert settings is not None
        assert settings.key_id == found[name].id

    again = apply(KEYS, "--dry-run")
    assert (again.returncode, again.stdout.decode()) == (
        0,
        f"All is as declared, at revision {revision + 1}.\n",
    )
    exported = apply.export()
    assert exported.startswith("# yaml-language-server: $schema=")
    assert apply(exported, "--dry-run", "--prune").returncode == 0
    assert "up-" not in exported

    changed = KEYS.replace("enforce:500", "enforce:600").replace("  plain:\n", "  new:\n")
    shown = apply(changed, "--prune", "--dry-run").stdout.decode()
    assert "policies.max_tokens: enforce:500 -> enforce:600" in shown
    assert "- key plain is revoked for good" in shown
    assert "- key older is revoked for good" in shown
    told = apply.changes(changed, "--prune")
    assert told["revision"] == revision + 2
    assert sorted(
        (one["action"], (one["after"] or one["before"])["name"]) for one in told["changes"]
    ) == [
        ("key.create", "new"),
        ("key.revoke", "older"),
        ("key.revoke", "plain"),
        ("key.update", "app"),
    ]
    assert {key.name for key in store.keys.list()} == {"app", "new"}


def test_secrets(where: tuple[Store, tuple[str, ...]], tmp_path: Path) -> None:
    """A secret is made once: it is printed, or goes to a file of its own that only its owner can
    read and that is never overwritten; or its digest is given."""
    store, options = where
    apply = Applying(tmp_path, options)
    digest = sha256(b"made elsewhere").hexdigest()
    text = (
        f"version: 1\nkeys:\n  filed: {{secret_file: filed.key}}\n  given: {{digest: {digest}}}\n"
    )
    told = apply.changes(text)
    file = tmp_path / "filed.key"
    filed, given = told["changes"]
    assert (filed["secret_file"], "key" in filed, "key" in given) == (str(file), False, False)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secret = file.read_text().strip()
    assert store.keys.in_force(api_key.digest(secret)) is not None
    assert store.keys.in_force(api_key.digest("made elsewhere")) is not None
    assert apply.changes(text)["changes"] == []
    assert file.read_text().strip() == secret

    refused = apply(text.replace("filed:", "another:"), "--yes")
    assert refused.returncode == 1
    assert b"exists already, so nothing was changed: it is never overwritten" in refused.stderr
    assert {key.name for key in store.keys.list()} == {"filed", "given"}
    nowhere = "version: 1\nkeys:\n  a: {secret_file: a.key}\n  b: {secret_file: no/b.key}\n"
    assert b"cannot be made" in apply(nowhere, "--yes").stderr
    assert not (tmp_path / "a.key").exists()

    replaced = apply.changes(text.replace(digest, sha256(b"another").hexdigest()))
    assert [one["action"] for one in replaced["changes"]] == ["key.update"]
    assert store.keys.in_force(api_key.digest("made elsewhere")) is None
    assert store.keys.in_force(api_key.digest("another")) is not None


def test_nothing_is_changed(where: tuple[Store, tuple[str, ...]], tmp_path: Path) -> None:
    """Nothing is changed without an answer, or if the file, or one key in it, is wrong. An empty
    file revokes nothing, and a file of defaults alone leaves the keys."""
    store, options = where
    apply = Applying(tmp_path, options)
    store.keys.create("kept")
    taken = sha256(b"x").hexdigest()
    store.keys.create("other", digest=taken)
    before = store.keys.changes_since(0).revision
    for text, flags, told in (
        (KEYS, (), b"give --yes"),
        ("", ("--prune", "--yes"), b"is empty"),
        ("version: 1\n", ("--prune", "--yes"), b"every key would be revoked"),
        ("version: 1\nkeys: {}\n", ("--prune",), b"every key would be revoked"),
        (KEYS[:-30], ("--prune", "--yes"), b"may be cut off"),
        (f"{KEYS}  x: {{digest: {taken}}}\n", ("--yes",), b"that of another key's secret"),
        (KEYS.replace("version: 1", "version: 2"), ("--yes",), b"of a newer policyd"),
    ):
        done = apply(text, *flags)
        assert (done.returncode, told in done.stderr) == (1, True), (text, done.stderr)
        assert b"Traceback" not in done.stderr
        assert store.keys.changes_since(0).revision == before
    assert (
        len(apply.changes("version: 1\ndefaults: {policies: {max_tokens: audit:5}}\n")["changes"])
        == 1
    )
    assert {key.name for key in store.keys.list()} == {"kept", "other"}


def test_stdin_and_schema(tmp_path: Path) -> None:
    """A declaration may come by stdin; the schema needs neither a file nor a database."""
    url = f"sqlite:///{tmp_path}/policyd.db"
    open_store(url).close()
    words = ("policyd", "apply", "-f", "-", "--yes", "--database-url", url)
    done = invoke(*words, stdin=b"version: 1\nkeys: {piped: {}}\n")
    assert done.returncode == 0, done.stderr
    missing = invoke("policyd", "apply", "-f", str(tmp_path / "no.yaml"), "--database-url", url)
    assert (missing.returncode, b"cannot be read" in missing.stderr) == (1, True)
    shown = invoke("policyd", "apply", "--schema")
    assert json.loads(shown.stdout)["required"] == ["version"]
