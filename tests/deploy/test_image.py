"""The container image: its recipe, its steps, and what they make, run as a container would be."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import grpc
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from policyd.v1.policy_pb2 import EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub
from tests.deploy.containerfile import Image, base_python, read
from tests.support import requirements
from tests.support.processes import Program

pytestmark = pytest.mark.timeout(600)  # The image takes a minute or two to build.
ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy/Containerfile"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
STAGES = read(FILE)


def test_the_linter_finds_nothing() -> None:
    """hadolint, and with it ShellCheck, accepts the recipe."""
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, FILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_installed_is_locked() -> None:
    """Each thing that is fetched is a wheel, and one that a lock knows by its digest."""
    steps = [step for stage in STAGES for step in stage.values("RUN")]
    installs = [part for step in steps for part in step.split("&&") if "pip install" in part]
    assert installs
    for one in installs:
        # otlp.txt is a part of the lock.
        locked = re.search(r"--require-hashes --only-binary :all: -r (deploy/|otlp\.txt)", one)
        assert locked or "--no-index" in one
    assert not [step for step in steps if "apt" in step or "curl" in step]


def test_the_lock_holds_every_extra() -> None:
    """What policyd requires with any of its extras is in the lock, in a version that fits."""
    lines = (ROOT / "deploy/requirements.txt").read_text().splitlines()
    pinned = {
        canonicalize_name(name): version.split()[0]
        for name, equals, version in (line.partition("==") for line in lines if line[:1].isalpha())
        if equals
    }
    for line in metadata.requires("policyd") or []:
        wanted = Requirement(line)
        assert pinned[canonicalize_name(wanted.name)] in wanted.specifier


@pytest.mark.parametrize("platform", ["x86_64", "aarch64"])
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_the_lock_has_wheels(platform: str, version: str, tmp_path: Path) -> None:
    """For both architectures, each Python that policyd supports, and glibc 2.28."""
    wanted = ("--python-platform", f"{platform}-manylinux_2_28", "--python-version", version)
    locked = ("--require-hashes", "-r", ROOT / "deploy/requirements.txt")
    dry = ("--dry-run", "--only-binary", ":all:", "--target", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "install", *dry, *wanted, *locked],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_context_holds_what_is_copied() -> None:
    """.dockerignore lets in exactly the files that the recipe copies."""
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = [
        word
        for stage in STAGES
        for value in stage.values("COPY")
        if "--from" not in value
        for word in value.split()[:-1]
    ]
    assert allowed == set(copied)
    for name in allowed:
        assert (ROOT / name).exists()


def test_it_is_not_root_and_says_what_it_is() -> None:
    """The user is a number, other than 0; labels name version, commit and source."""
    image = STAGES[-1]
    [user] = image.values("USER")
    assert all(int(number) > 0 for number in user.split(":"))
    [label] = image.values("LABEL")
    for name in ("title", "licenses", "version", "revision", "source"):
        assert f"org.opencontainers.image.{name}=" in label
    [health] = image.values("HEALTHCHECK")
    assert json.loads(health.split(" CMD ")[1]) == ["policyd", "health"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image, built by its steps."""
    requirements.program("setpriv", "util-linux")
    mounted = ["unshare", "--mount", "true"]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        requirements.missing("the steps of an image are run by root, who may mount")
    folder = tmp_path_factory.mktemp("image")
    for one in (folder, *folder.parents):  # Its user has to get there.
        if one != Path("/tmp"):  # noqa: S108  # Its mode stays as it is.
            one.chmod(0o755)
        else:
            break
    return Image(FILE, ROOT, folder, base_python(), SOURCE_COMMIT=COMMIT)


@pytest.fixture
def policyd(image: Image) -> Iterator[Program]:
    """policyd, as a container of this image runs it."""
    ports = ("--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--drain", "0")
    running = Program(
        *image.running(*image.command, *ports, POLICYD_HTTP="127.0.0.1:0"),
        ready=r"policyd is ready: grpc=(\S+) admin=\S+ http=(\S+) version=\S+ commit=(\S+)",
    )
    yield running
    running.stop()


def test_it_runs_as_a_container_would(image: Image, policyd: Program) -> None:
    """policyd answers from a read-only root, without root's rights, and keeps its data apart."""
    at, http, commit = policyd.match.groups()
    assert COMMIT.startswith(commit)
    with grpc.insecure_channel(at) as channel:
        answer = PolicyServiceStub(channel).Evaluate(EvaluateRequest(has_user=True), timeout=30)
    assert answer.decision_id
    health = image.running("policyd", "health", POLICYD_HTTP=http)
    assert subprocess.run(health, check=False).returncode == 0
    kept = {one.name: one for one in (image.layer / "data").iterdir()}
    assert {"policyd.db", "admin-token"} <= kept.keys()
    assert str(kept["policyd.db"].stat().st_uid) == image.user.partition(":")[0]
    denied = image.running("sh", "-c", "touch /opt/policyd/x || touch /x || id -u")
    done = subprocess.run(denied, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == image.user.partition(":")[0]
    assert "Read-only file system" in done.stderr


def test_the_gateway_is_in_it(image: Image) -> None:
    """The same image runs the gateway."""
    done = subprocess.run(
        image.running("policyd-gateway", "--version"), capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("policyd-gateway, version "), done.stderr
    assert COMMIT[:12] in done.stdout


def test_it_is_small(image: Image) -> None:
    """The image holds neither developers' tools nor pip."""
    packages = next(image.layer.glob("upper/opt/policyd/lib/python3*/site-packages"))
    held = {one.name.lower() for one in packages.iterdir()}
    assert {"policyd", "gateway", "grpc", "psycopg", "opentelemetry"} <= held
    assert not {"pip", "pytest", "mypy", "hatchling", "setuptools"} & held
