"""The data folder: one user at a time, secrets that stay, and nothing that others can read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.operator.folder import DataFolder, FolderInUse

HOLD = """
import sys
from pathlib import Path
from services.operator.folder import DataFolder
lock = DataFolder(Path(sys.argv[1])).take_lock()
print("held", flush=True)
sys.stdin.read()
"""


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    folder.create()
    folder.secrets()
    assert folder.root.stat().st_mode & 0o777 == 0o700
    assert folder.run.stat().st_mode & 0o777 == 0o700
    assert folder.secrets_file.stat().st_mode & 0o777 == 0o600


def test_secrets_are_made_once(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    made = folder.secrets()
    assert DataFolder(tmp_path).secrets() == made
    assert len({made.nats_password, made.nats_system_password, made.box_api_key}) == 3


def test_a_second_user_is_told_of_the_first_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    assert folder.holder() is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        assert folder.holder() == first.pid
        with pytest.raises(FolderInUse, match=rf"already runs on {tmp_path} \(process {first.pid}\)"):
            folder.take_lock()
        first.kill()
    assert folder.holder() is None
    os.close(folder.take_lock())


def test_a_long_path_gets_its_sockets_elsewhere(tmp_path: Path) -> None:
    near = DataFolder(Path("/srv/chatlog/data"))
    assert near.run == Path("/srv/chatlog/data/run")
    far = DataFolder(tmp_path / ("x" * 100))
    assert len(str(far.health_socket("inference-64"))) < 100
    assert far.run != DataFolder(tmp_path / ("y" * 100)).run


def test_a_run_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.run.mkdir()
    folder.run.chmod(0o755)
    with pytest.raises(PermissionError, match="open to others"):
        folder.create()
