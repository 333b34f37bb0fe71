"""Service processes for tests, forked from one that has imported them. `Forked` is to tests what Popen is.

A service's imports take ten times the CPU of the rest of its start, and the suite starts hundreds. What runs is what
`python -m services.<name>` runs, with its own pid, environment and log, in a process of its own that may be killed and
paused; test_lifecycle.py and the tests of `chatlog up` start processes the long way. Must never run two services' code
in one process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STOP_TIMEOUT_S = 10.0


class Forked:
    """One process, as far as tests use Popen: pid, returncode, poll, wait, send_signal."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit code, minus the signal that ended it, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            milliseconds = None if timeout is None else timeout * 1000
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            if not ended.poll(milliseconds):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self._server.reap(self)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended. Its pid is nobody else's before it is reaped."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        os.close(self._pidfd)


class ForkServer:
    """The process that imports services and forks: one for each process of tests, started when it is first needed."""

    def __init__(self) -> None:
        # Requests come from threads too: tests wait for processes in them.
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def spawn(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        errors: Path | None = None,
    ) -> Forked:
        """Start `python -m module arguments` with exactly this environment. What it prints is added to log; errors:
        what it says on standard error is added to this one.
        """
        request = {"module": module, "arguments": arguments, "environment": dict(environment)}
        request["written"] = [str(log), str(errors or log)]
        with self._lock:
            return Forked(self._told(request), self)

    def reap(self, ended: Forked) -> None:
        """Take the exit code of one that has ended, once."""
        with self._lock:
            if ended.returncode is None:
                ended.returncode = self._told({"reap": ended.pid})
                ended.close()

    def end(self) -> None:
        """It ends when nothing more can be asked."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(STOP_TIMEOUT_S)

    def _told(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@functools.cache
def fork_server() -> ForkServer:
    started = ForkServer()
    atexit.register(started.end)
    return started


def main() -> None:
    """The fork server's own process: forks until its input ends. What a forked one runs ends that one, not this."""
    told = os.dup(sys.stdout.fileno())
    for line in sys.stdin:
        request = json.loads(line)
        if "reap" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["reap"], 0)[1])
        else:
            for imported in ("app", "cli"):
                with contextlib.suppress(ModuleNotFoundError):  # a module without either starts as fast as it can
                    importlib.import_module(f"{request['module']}.{imported}")
            answer = os.fork()
            if answer == 0:
                os.close(told)
                _become(request["arguments"], request["environment"], request["written"])
                runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
                return
        os.write(told, f"{answer}\n".encode())


def _become(arguments: list[str], environment: dict[str, str], written: list[str]) -> None:
    """Have a process's own arguments, environment and standard streams."""
    sources = [os.open(os.devnull, os.O_RDONLY)]
    sources += [os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) for path in written]
    for stream, source in enumerate(sources):
        os.dup2(source, stream)
        os.close(source)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments


if __name__ == "__main__":
    main()
