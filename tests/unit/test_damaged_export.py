"""An export of a damaged log: what can be read goes out, and it is said that it is not what was recorded."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from typer.testing import CliRunner

from services.operator.cli import app
from tests.conversing import USER, completed
from tests.recording import begin, scene


def test_an_event_that_is_not_what_was_recorded_is_exported_and_told(tmp_path: Path) -> None:
    with scene(tmp_path) as on:
        session_id = begin(on)
        said, _ = on.running(session_id, "Which city?")
        on.take(completed(session_id, str(said.turn_id), text="Paris"))
        command = ["export", "--user", USER, "--data-dir", str(on.path.parent)]
        whole = CliRunner().invoke(app, command)
        assert whole.exit_code == 0, whole.stderr
        with closing(sqlite3.connect(on.path)) as log, log:
            damage = (
                "UPDATE events SET body = CAST(replace(body, 'Paris', 'Pasis') AS BLOB) WHERE type = 'answer_completed'"
            )
            assert log.execute(damage).rowcount == 1
            [(position,)] = log.execute("SELECT position FROM events WHERE type = 'answer_completed'")
        damaged = CliRunner().invoke(app, command)
    assert damaged.exit_code == 1
    assert f"1 of these events are not what was recorded, first that at position {position}" in damaged.stderr
    assert damaged.stdout.count("\n") == whole.stdout.count("\n")
    assert "Pasis" in damaged.stdout
