"""The data folder: which file is where, its lock, and the generated secrets.

Owns the layout of everything that the operator's command keeps beside the log. One `chatlog up` at a time may use a
folder, and only its owner may read it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

# A unix socket's path may have 107 bytes; supervisor adds its pid to the one that it opens first.
_MAX_RUN_PATH_BYTES = 75
_SECRET_BYTES = 32


class FolderInUse(Exception):
    """Another `chatlog up` uses this data folder."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """Made once and kept: a restart must find the broker and the box with the same words."""

    nats_password: str
    nats_system_password: str
    box_api_key: str


@dataclass(frozen=True, slots=True)
class DataFolder:
    """The paths under CHATLOG_DATA_DIR. root is absolute."""

    root: Path

    @property
    def broker_store(self) -> Path:
        return self.root / "nats"

    @property
    def broker_config(self) -> Path:
        return self.root / "nats.conf"

    @property
    def supervisor_config(self) -> Path:
        return self.root / "supervisord.conf"

    @property
    def secrets_file(self) -> Path:
        return self.root / "secrets.json"

    @property
    def stack_file(self) -> Path:
        """What runs: addresses and names, for `chatlog status` and `chatlog down`; no secrets."""
        return self.root / "stack.json"

    @property
    def lock_file(self) -> Path:
        return self.root / "up.lock"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Where the sockets are: data/run, or a private folder of the system's where that path is too long for one."""
        inside = self.root / "run"
        if len(os.fsencode(inside)) <= _MAX_RUN_PATH_BYTES:
            return inside
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"chatlog-{os.getuid()}-{digest}"

    @property
    def supervisor_socket(self) -> Path:
        return self.run / "supervisor.sock"

    def health_socket(self, program: str) -> Path:
        return self.run / f"{program}.sock"

    def create(self) -> None:
        """Make the folders, readable by their owner only. Raises OSError where that is not possible."""
        for folder in (self.root, self.broker_store, self.logs, self.run):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.run.stat().st_uid != os.getuid() or self.run.stat().st_mode & 0o077:
            raise PermissionError(f"{self.run} is open to others than you")

    def take_lock(self) -> int:
        """The lock's file descriptor, to be kept open; the system lets go of it whatever way we end.

        Raises FolderInUse with the holder's process id.
        """
        lock = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode() or "unknown"
            os.close(lock)
            raise FolderInUse(
                f"`chatlog up` already runs on {self.root} (process {holder}); `chatlog down` stops it"
            ) from None
        os.truncate(lock, 0)
        os.write(lock, str(os.getpid()).encode())
        return lock

    def holder(self) -> int | None:
        """The process id of the `chatlog up` that uses this folder now."""
        try:
            lock = os.open(self.lock_file, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            return int(os.read(lock, 20) or 0) or None
        finally:
            os.close(lock)

    def secrets(self) -> Secrets:
        """The secrets of this folder, made at the first call."""
        if self.secrets_file.exists():
            return Secrets(**json.loads(self.secrets_file.read_text()))
        made = Secrets(*(secrets.token_urlsafe(_SECRET_BYTES) for _ in range(3)))
        self.write_private(self.secrets_file, json.dumps(asdict(made), indent=1) + "\n")
        return made

    def write_private(self, path: Path, text: str) -> None:
        """Write a file that only its owner may read, whole or not at all."""
        beside = path.with_name(path.name + ".new")
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
