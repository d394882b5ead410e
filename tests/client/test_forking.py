"""policyd.client in processes that fork, such as those of gunicorn and Celery."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from tests.client.test_client import Failing, Serving
from tests.support.peers import KINDS
from tests.support.processes import Policyd

pytestmark = pytest.mark.slow  # Each test runs a program of its own, which forks.

PROGRAM = '''
import asyncio, ctypes, faulthandler, gc, multiprocessing, os, signal, sys, threading, time

# A child that hangs, be it in the client's own hook, prints its threads' stacks and is killed.
faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
os.register_at_fork(after_in_child=lambda: signal.alarm(30))

from policyd.client import PolicyClient
from policyd.client import SyncPolicyClient
from policyd.errors import NoDecision
from policyd.v1.policy_pb2 import CheckKeyRequest, EvaluateRequest, Outcome

TARGET = sys.argv[1]
DESCRIPTOR = EvaluateRequest(has_user=True)


def ask(client):
    """Whether policyd itself decides."""
    return client.evaluate(DESCRIPTOR).decision_id != ""


async def ask_async(client):
    return (await client.evaluate(DESCRIPTOR)).decision_id != ""


def in_child(check, forked=os.fork):
    """Whether a child finds it so, and ends as usual. Otherwise says how it ended."""
    child = forked()
    if child == 0:
        sys.exit(0 if check() else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0:
        print(f"a child ended with {status}", file=sys.stderr)
    return status == 0


def fork_in_c():
    """Fork as a server written in C does: Python hears of it in the child only."""
    python = ctypes.PyDLL(None)
    child = python.fork()
    if child == 0:
        python.PyOS_AfterFork_Child()
    return child

'''


def run(target: str, program: str, **environment: str) -> str:
    """Run a program that forks, and check that it prints only what it is meant to."""
    # Python 3.12 and later warns of forks beside threads, which are tested here.
    calm = "ignore:This process:DeprecationWarning"
    command = [sys.executable, "-W", "error", "-W", calm, "-c", PROGRAM + program, target]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,
        env=os.environ | environment,
    ) as started:
        try:
            printed, problems = started.communicate(timeout=90)
        finally:
            with suppress(ProcessLookupError):  # No process of it is left, as it should be.
                os.killpg(started.pid, signal.SIGKILL)
    sys.stderr.write(problems)  # pytest shows it where the test fails.
    assert started.returncode == 0, problems
    return printed.strip()


@pytest.fixture(scope="module", params=KINDS)
def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a policyd, over gRPC and over HTTP."""
    server = Policyd(tmp_path_factory.mktemp("policyd"), "--http", "127.0.0.1:0")
    yield server.grpc if request.param == "grpc" else f"http://{server.http}"
    assert server.stop() == 0


@pytest_asyncio.fixture
async def serving() -> AsyncIterator[Serving]:
    servers = Serving()
    yield servers
    await servers.stop()


def test_a_client_made_before(target: str) -> None:
    """Children ask by a client that their parent made and never used, as with `--preload`."""
    program = """
client = SyncPolicyClient(TARGET, timeout=20)
print(in_child(lambda: ask(client)), in_child(lambda: ask(client) and client.close() is None))
"""
    assert run(target, program) == "True True"


def test_a_parent_that_has_asked(target: str) -> None:
    """Children and grandchildren ask over channels of their own, and the parent goes on."""
    program = """
client = SyncPolicyClient(TARGET, timeout=20)
print(ask(client), in_child(lambda: ask(client)), ask(client))
print(in_child(lambda: ask(client) and in_child(lambda: ask(client)) and ask(client)))
other = SyncPolicyClient(TARGET, timeout=20)
print(ask(other), in_child(lambda: ask(client) and ask(other)), ask(client), ask(other))
with multiprocessing.get_context("fork").Pool(3) as pool:
    print(all(pool.map(ask_one, range(6))))
"""
    helper = "def ask_one(number):\n    return ask(client)\n"
    assert run(target, helper + program).split() == ["True"] * 9


def test_a_parent_that_is_asking(target: str) -> None:
    """Threads that ask while other threads fork get every answer."""
    program = """
client = SyncPolicyClient(TARGET, timeout=20)
is_over, answers = threading.Event(), []

def work():
    while not is_over.is_set():
        answers.append(ask(client))

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
print(all(in_child(lambda: ask(client)) for _ in range(8)))
is_over.set()
for thread in threads:
    thread.join()
print(all(answers), len(answers) > 8)
"""
    assert run(target, program).split() == ["True"] * 3


def test_several_policyds(target: str) -> None:
    """If the client looks for a dead policyd among several, the forking process and the child go
    on."""
    program = """
named = TARGET.replace("127.0.0.1", "localhost")
client = SyncPolicyClient([TARGET, TARGET.rpartition(":")[0] + ":1", named], timeout=20)
print(all(ask(client) for _ in range(20)), in_child(lambda: ask(client) and ask(client)))
print(ask(client))
print(in_child(lambda: client.close() is None))
"""
    assert run(target, program).split() == ["True"] * 4


def test_the_end_of_a_child(target: str) -> None:
    """No child hangs in closing, in garbage collection or at its end, asked or not."""
    program = """
client = SyncPolicyClient(TARGET, timeout=20)
ask(client)

def collects():
    global client
    del client
    return gc.collect() >= 0

print(in_child(lambda: True), in_child(collects))
print(in_child(lambda: client.close() is None and client.close() is None))
print(in_child(lambda: ask(client) and collects()))
client.close()
print(in_child(lambda: client.close() is None))
"""
    assert run(target, program).split() == ["True"] * 5


def test_a_fork_that_python_does_not_see(target: str) -> None:
    """A child of such a fork does not use its parent's channel.

    It fails at once, and on_error="allow" does not apply.
    """
    program = """
client = SyncPolicyClient(TARGET, timeout=20, on_error="allow")
ask(client)

def is_denied():
    for one in (client, SyncPolicyClient(TARGET, timeout=20, on_error="allow")):
        answer = one.evaluate(DESCRIPTOR)
        one.report(Outcome(decision_id="1"))
        one.close()
        if answer.denial.http_status != 503 or "forked" not in answer.explanation.summary:
            return False
    return True

print(in_child(is_denied, fork_in_c), ask(client))
"""
    assert run(target, program) == "True True"


def test_a_thread_that_is_gone(target: str) -> None:
    """If Python never learns of the fork, a caller waits no longer than its timeout."""
    program = """
client = SyncPolicyClient(TARGET, timeout=0.2, on_error="deny")
ask(client)
child = ctypes.PyDLL(None).fork()
if child == 0:
    signal.alarm(30)
    print(client.evaluate(DESCRIPTOR).explanation.summary, flush=True)
    os._exit(0)
ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(f"the child ended with {ended}", file=sys.stderr)
"""
    # gRPC's own handlers of forks end such a child now and then.
    printed = run(target, program, GRPC_ENABLE_FORK_SUPPORT="0")
    assert printed == "No decision: the client's own thread gave no answer."


def test_an_asynchronous_client_made_before(target: str) -> None:
    """A child uses a client that its parent made and never used, on an event loop of its own."""
    program = """
client = PolicyClient(TARGET, timeout=20)
print(in_child(lambda: asyncio.run(ask_async(client))), asyncio.run(ask_async(client)))
"""
    assert run(target, program) == "True True"


def test_an_asynchronous_client_in_use(target: str) -> None:
    """While the client has a channel, children are denied at once; once it is closed, they ask.

    gRPC's own handlers of forks could end such a child, so they are switched off.
    """
    program = """
class Child:
    async def denied(self, client):
        client.report(Outcome(decision_id="1"))
        answer = await client.evaluate(DESCRIPTOR)
        await client.close()
        return answer.denial.http_status == 503 and "forked" in answer.explanation.summary

    def all_denied(self, client):
        found = []
        def work():
            for one in (client, PolicyClient(TARGET, on_error="allow", timeout=20)):
                found.append(asyncio.run(self.denied(one)))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        threads = SyncPolicyClient(TARGET, on_error="deny")
        return found == [True, True] and threads.evaluate(DESCRIPTOR).denial.http_status == 503

async def do(act):
    return act()

def run_on_loop(work):
    return asyncio.run_coroutine_threadsafe(work, loop).result()

loop = asyncio.new_event_loop()
thread = threading.Thread(target=loop.run_forever)
thread.start()
client = run_on_loop(do(lambda: PolicyClient(TARGET, on_error="allow", timeout=20)))
run_on_loop(do(lambda: client.report(Outcome(decision_id="1"))))
print(in_child(lambda: Child().all_denied(client)))
print(run_on_loop(ask_async(client)), in_child(lambda: Child().all_denied(client)))
print(run_on_loop(ask_async(client)))
run_on_loop(client.close())
loop.call_soon_threadsafe(loop.stop)
thread.join()
loop.close()
client = SyncPolicyClient(TARGET, timeout=20)
print(in_child(lambda: ask(client)))
"""
    printed = run(target, program, GRPC_ENABLE_FORK_SUPPORT="0")
    assert printed.split() == ["True"] * 5


def test_an_error_that_is_kept(target: str) -> None:
    """A program that keeps an error keeps no channel, with which gRPC's threads would stay."""
    program = """
def channels():
    gc.collect()
    return [one for one in gc.get_objects() if type(one).__name__ == "AioChannel"]

def error_of(ask):
    try:
        ask()
    except NoDecision as error:
        return error

dead = SyncPolicyClient("127.0.0.1:1", timeout=0.2)
kept = error_of(lambda: ask(dead)), error_of(lambda: dead.check_key(CheckKeyRequest(key="x")))
print(None not in kept, len(channels()) > 0)
dead.close()
print(channels() == [])
client = SyncPolicyClient(TARGET, timeout=20)
print(ask(client), in_child(lambda: ask(client)))
"""
    assert run(target, program).split() == ["True"] * 5


async def test_reports(serving: Serving) -> None:
    """A report that waits at a fork is sent by the parent, once; a child sends its own."""
    servicer = Failing()
    program = """
client = SyncPolicyClient(TARGET, timeout=20)
client.report(Outcome(decision_id="before"))

def reports():
    client.report(Outcome(decision_id="child"))
    client.close()
    return True

print(in_child(reports))
client.report(Outcome(decision_id="after"))
client.close()
"""
    target = await serving(servicer)
    assert await asyncio.to_thread(run, target, program) == "True"
    assert sorted(servicer.reported) == ["after", "before", "child"]


def test_a_policyd_that_hangs(tmp_path: Path) -> None:
    """A policyd that hangs delays neither the fork nor the child beyond the deadline."""
    server = Policyd(tmp_path)
    program = f"""
client = SyncPolicyClient(TARGET, timeout=1, on_error="deny")
ask(client)
os.kill({server.pid}, signal.SIGSTOP)
thread = threading.Thread(target=ask, args=[client])
thread.start()
time.sleep(0.2)
print(in_child(lambda: client.evaluate(DESCRIPTOR).denial.http_status == 503))
thread.join()
"""
    try:
        assert run(server.grpc, program) == "True"
    finally:
        server.send(signal.SIGCONT)
        assert server.stop() == 0


def test_a_signal_while_it_forks(target: str) -> None:
    """A signal handler may raise where the fork waits for a call: the parent's clients go on."""
    program = """
clients = [SyncPolicyClient(TARGET, timeout=5) for _ in range(3)]
assert all(map(ask, clients))
late = EvaluateRequest(has_user=True, min_revision=10**9)
denying = SyncPolicyClient(TARGET, timeout=5, on_error="deny")
waiting = threading.Thread(target=denying.evaluate, args=(late,))
waiting.start()

def give_up(*_):
    raise RuntimeError("enough")

signal.signal(signal.SIGALRM, give_up)
signal.setitimer(signal.ITIMER_REAL, 0.5)
time.sleep(0.1)
if (child := os.fork()) == 0:
    os._exit(0)
os.waitpid(child, 0)
waiting.join()
print(all(map(ask, [*clients, denying])))
"""
    assert run(target, program) == "True"
