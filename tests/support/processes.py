"""policyd's programs as real processes, for tests."""

import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import grpc

from policyd.engine.settings import Settings
from policyd.policies import TABLE
from policyd.v1 import admin_pb2
from policyd.v1.admin_pb2_grpc import AdminServiceStub
from policyd.v1.policy_pb2 import EnforceMode, EvaluateRequest
from policyd.v1.policy_pb2_grpc import PolicyServiceStub

BIN = Path(sys.executable).parent
_running: "set[Program]" = set()


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without variables that would change how policyd or its gateway run."""
    foreign = ("POLICYD_", "GATEWAY_", "OPENAI_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {"PYTHONUNBUFFERED": "1"} | dict(extra or {})


def run(
    *command: str, stdin: bytes | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run one of our commands to its end."""
    program = [str(BIN / command[0]), *command[1:]]
    return subprocess.run(
        program, input=stdin, capture_output=True, env=environment(env), timeout=60, check=False
    )


class Program:
    """One of our servers.

    It has printed a line that matches `ready` when the constructor returns; `match` is that line's
    match. It may have `files` files open.
    """

    def __init__(
        self,
        *command: str,
        ready: str,
        env: Mapping[str, str] | None = None,
        files: int | None = None,
        cwd: Path | None = None,
    ) -> None:
        limited = ["sh", "-c", 'ulimit -n "$0" && exec "$@"', str(files)] if files else []
        self._process = subprocess.Popen(
            [*limited, str(BIN / command[0]), *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(env),
            cwd=cwd,
            text=True,
        )
        _running.add(self)
        self.output: list[str] = []
        self.errors: list[str] = []
        self._readers = [threading.Thread(target=self._collect_errors)]
        self._readers[0].start()
        self.match = self._wait_for(ready)
        self._readers.append(threading.Thread(target=self._collect_output))
        self._readers[1].start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout: float = 60) -> int:
        """The exit status; negative for a signal."""
        status = self._process.wait(timeout)
        _running.discard(self)
        for reader in self._readers:
            reader.join()
        if status not in (0, -signal.SIGKILL):
            # pytest shows this where the test fails.
            sys.stdout.write(f"{self._process.args!r} ended with {status}:\n")
            sys.stdout.writelines(self.errors[-50:])
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal and return the exit status."""
        if self._process.poll() is None:
            self.send(number)
        return self.wait()

    def _wait_for(self, ready: str) -> re.Match[str]:
        assert self._process.stdout
        for line in self._process.stdout:
            self.output.append(line)
            if match := re.search(ready, line):
                return match
        status = self.wait()
        self._process.stdout.close()
        raise AssertionError(f"ended with {status}: {''.join(self.output + self.errors)}")

    def _collect_output(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            self.output.extend(lines)

    def _collect_errors(self) -> None:
        assert self._process.stderr
        with self._process.stderr as lines:
            for line in lines:
                self.errors.append(line)


def end_programs() -> None:
    """Kill the programs that no test has ended."""
    for program in list(_running):
        program.send(signal.SIGKILL)
        program.wait()


class Policyd(Program):
    """`policyd serve`, on free ports; on a SQLite database in `folder` unless another is given."""

    workers = 1

    def __init__(
        self,
        folder: Path,
        *flags: str,
        database_url: str | None = None,
        env: Mapping[str, str] | None = None,
        files: int | None = None,
        cwd: Path | None = None,
        drains: bool = True,
        command: str = "policyd",
    ) -> None:
        self.folder = folder
        self.database_url = database_url or f"sqlite:///{folder}/policyd.db"
        super().__init__(
            *(command, "serve", "--database-url", self.database_url),
            *("--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0"),
            *("--admin-token-file", str(folder / "admin-token")),
            *("--spool", str(folder / "policyd.db-spool")),
            # The tests of draining set it, and an older version does not know it.
            *(("--drain", "0") if drains else ()),
            *flags,
            ready=r"policyd is ready: grpc=(\S+) admin=(\S+)(?: http=(\S+))?(?: console=(\S+))?",
            env=env,
            files=files,
            cwd=cwd,
        )
        self.grpc, self.admin, self.http, self.console = self.match.groups()
        flag = "--workers"
        if flag in flags:
            self.workers = int(flags[flags.index(flag) + 1])

    def create_key(
        self,
        mode: str | None = None,
        override: str | None = None,
        accept: str | None = None,
        policies: Settings = (),
    ) -> str:
        """A new API key, in force. `mode` and `override` are those of the original policy."""
        wanted = admin_pb2.ApiKey(
            name=f"test {secrets.token_hex(4)}",
            enforce_user_ids=f"ENFORCE_MODE_{mode.upper()}" if mode else None,  # type: ignore[arg-type]  # None sets nothing.
            override_policy=f"OVERRIDE_POLICY_{override.upper()}" if override else None,  # type: ignore[arg-type]  # None sets nothing.
            accept=accept.split(",") if accept else (),
            policies={
                name: admin_pb2.PolicySetting(
                    mode=EnforceMode.ValueType(setting.mode or 0),
                    value=setting.value,
                    override_policy=admin_pb2.OverridePolicy.ValueType(setting.override or 0),
                )
                for name, setting in policies
                if name != TABLE.original.name
            },
        )
        token = (self.folder / "admin-token").read_text().strip()
        with grpc.insecure_channel(self.admin) as channel:
            made = AdminServiceStub(channel).CreateApiKey(
                admin_pb2.CreateApiKeyRequest(api_key=wanted),
                metadata=(("authorization", f"Bearer {token}"),),
                timeout=30,
            )
        self.reach(made.api_key.revision)
        return made.key

    def reach(self, revision: int) -> None:
        """Wait until `revision` is in force, in each worker."""
        request = EvaluateRequest(has_user=True, min_revision=revision)
        # Each call has a connection of its own, which leads to any worker.
        options = [("grpc.use_local_subchannel_pool", 1)]
        reached: set[str] = set()
        until = time.monotonic() + 60
        while len(reached) < self.workers:
            with grpc.insecure_channel(self.grpc, options) as channel:
                try:
                    answer = PolicyServiceStub(channel).Evaluate(request, timeout=30)
                except grpc.RpcError as error:
                    late = error.code() is grpc.StatusCode.FAILED_PRECONDITION
                    if not late or time.monotonic() > until:
                        raise
                    continue
            # The middle of a decision's ID identifies the worker.
            reached.add(answer.decision_id[12:24])
