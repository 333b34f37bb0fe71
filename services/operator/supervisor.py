"""The supervisor (PyPI's supervisord): its configuration, and the words that we exchange with it.

Owns how a child is restarted, logged and stopped. Must never know what a child does.
"""

from __future__ import annotations

import http.client
import socket
import xmlrpc.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.operator import leash
from services.operator.folder import DataFolder
from services.operator.programs import Program

# A child that ends is started again at once: the leash knows how soon is too soon, and bounds the pause.
_START_S = 0
# Restarts are never given up: a full disk or a lost network may take days to be mended.
_START_RETRIES = 1_000_000
# The services' drain is 10 s by default; what needs longer than this is killed.
STOP_WAIT_S = 20
# It answers within milliseconds; one that hangs must not hang us.
_CALL_TIMEOUT_S = 5.0
_LOG_BYTES = 10_000_000
_LOG_BACKUPS = 3

RUNNING_STATES = ("STARTING", "RUNNING")


class SupervisorGone(Exception):
    """The supervisor does not answer."""


class SupervisorRefused(SupervisorGone):
    """It is there and does not do what it was asked: most often because it is stopping."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What the supervisor knows of a child. pid 0: it does not run; exit_code: how it last ended."""

    name: str
    state: str
    pid: int
    exit_code: int

    @property
    def running(self) -> bool:
        return self.state in RUNNING_STATES


def render(folder: DataFolder, programs: Sequence[Program]) -> str:
    """supervisord's configuration. It holds no secrets: children inherit them from the supervisor's environment."""
    sections = [_section("supervisord", _supervisord(folder))]
    sections.append(_section("unix_http_server", {"file": folder.supervisor_socket, "chmod": "0600"}))
    rpc = {"supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"}
    sections.append(_section("rpcinterface:supervisor", rpc))
    for priority, program in enumerate(programs, start=1):
        sections.append(_section(f"program:{program.name}", _program(folder, program, priority)))
    return "\n".join(sections)


def _supervisord(folder: DataFolder) -> dict[str, object]:
    return {
        "nodaemon": "true",
        "silent": "true",
        "logfile": folder.logs / "supervisord.log",
        "logfile_maxbytes": _LOG_BYTES,
        "logfile_backups": _LOG_BACKUPS,
        "pidfile": folder.run / "supervisord.pid",
        "childlogdir": folder.logs,
        "umask": "077",
        "nocleanup": "true",
    }


def _program(folder: DataFolder, program: Program, priority: int) -> dict[str, object]:
    given = {**program.environment, leash.STARTS_VARIABLE: str(folder.run / f"{program.name}.starts")}
    environment = ",".join(f'{name}="{value}"' for name, value in given.items())
    return {
        "command": " ".join(_argument(part) for part in program.command),
        "environment": environment,
        "priority": priority,
        "autostart": "true" if program.at_once else "false",
        "autorestart": "true",
        "startsecs": _START_S,
        "startretries": _START_RETRIES,
        "stopsignal": "TERM",
        "stopwaitsecs": STOP_WAIT_S,
        "stopasgroup": "true",
        "killasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": folder.logs / f"{program.name}.log",
        "stdout_logfile_maxbytes": _LOG_BYTES,
        "stdout_logfile_backups": _LOG_BACKUPS,
    }


def _section(name: str, options: Mapping[str, object]) -> str:
    lines = [f"{option} = {str(value).replace('%', '%%')}" for option, value in options.items() if value != ""]
    return "\n".join([f"[{name}]", *lines, ""])


def _argument(part: str) -> str:
    return '"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Supervisor:
    """The running supervisor, asked over its socket. Blocking and bounded; any thread may ask, each on its own."""

    def __init__(self, folder: DataFolder) -> None:
        self._socket = str(folder.supervisor_socket)

    def answers(self) -> bool:
        """Whether it is there, be it stopping."""
        try:
            self._call("getState")
        except SupervisorRefused:
            return True
        except SupervisorGone:
            return False
        return True

    def processes(self) -> list[ProcessState]:
        """Raises SupervisorGone."""
        return [
            ProcessState(
                name=each["name"],
                state=each["statename"],
                pid=each["pid"],
                exit_code=each["exitstatus"],
            )
            for each in self._call("getAllProcessInfo")
        ]

    def start(self, name: str) -> None:
        self._call("startProcess", name, False)

    def restart(self, name: str) -> None:
        """SIGTERM and a new start; the supervisor sees to both."""
        self._call("stopProcess", name, True, timeout_s=STOP_WAIT_S + _CALL_TIMEOUT_S)
        self._call("startProcess", name, False)

    def shutdown(self) -> None:
        """Stop every child, last started first, and then itself."""
        self._call("shutdown")

    def _call(self, method: str, *arguments: Any, timeout_s: float = _CALL_TIMEOUT_S) -> Any:
        transport = _UnixTransport(self._socket, timeout_s)
        try:
            with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as server:
                return getattr(server.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            raise SupervisorRefused(f"the supervisor refuses {method}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise SupervisorGone(f"the supervisor does not answer: {error}") from error


class _UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a unix socket, within a time."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__()
        self._path = path
        self._timeout_s = timeout_s

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(self._timeout_s)
        try:
            connection.sock.connect(self._path)
        except OSError:
            connection.close()
            raise
        self._connection = (str(host), connection)
        return connection
