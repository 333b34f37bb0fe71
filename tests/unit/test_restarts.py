"""What ends again and again: how long its next start waits, and which of its own words say why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.operator.errors import ErrorLog, words_of
from services.operator.leash import pause_s, soon


def test_the_first_restart_is_at_once_and_the_longest_pause_is_bounded() -> None:
    assert [pause_s(restarts) for restarts in range(9)] == [0, 0, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    assert pause_s(10**6) == 5


@pytest.mark.parametrize(
    ("kept", "restarts"),
    [
        ("7 0 95.0", 1),
        ("7 4 99.5", 5),
        ("7 4 89.0", 0),  # it ran well meanwhile
        ("8 4 99.5", 0),  # another supervisor's
        ("", 0),
        ("7 4", 0),
        ("7 x 99.5", 0),
    ],
)
def test_starts_count_that_came_soon_after_another(kept: str, restarts: int) -> None:
    assert soon(kept, supervisor=7, now=100.0) == restarts


def record(level: str, **fields: Any) -> str:
    return json.dumps({"service": "history", "level": level, "event": "main_died", **fields})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            record("critical", exception=[{"kind": "LogError", "words": "no log"}, {"kind": "E", "words": "x"}]),
            "no log",
        ),
        (record("critical", exception=[{"kind": "ValueError", "words": "[not logged]"}]), "ValueError"),
        (record("critical", reason="the disk is full"), "the disk is full"),
        (record("critical"), "main_died"),
        (record("error", exception=[{"kind": "OSError", "words": "it lived on"}]), None),
        ("[12] 2026/11/21 22:00:00.000000 [FTL] Can't start JetStream: no", "Can't start JetStream: no"),
        ("[12] 2026/11/21 22:00:00.000000 [ERR] a client went", None),
        ("nats-server: nats.conf:3:1: unknown field", "nats-server: nats.conf:3:1: unknown field"),
        ("ModuleNotFoundError: No module named 'x'", "ModuleNotFoundError: No module named 'x'"),
        ("srv  update_slots: all slots are idle", None),
        ("[1, 2]", None),
        ("", None),
    ],
)
def test_last_words_are_those_of_an_end(line: str, words: str | None) -> None:
    assert words_of(line) == words


def test_no_end_is_told_twice(tmp_path: Path) -> None:
    path = tmp_path / "history.log"
    early = ErrorLog(path)
    assert early.last_words() is None
    path.write_text(f"{record('critical', reason='one')}\n{record('info')}\n")
    late = ErrorLog(path)
    assert (early.last_words(), early.last_words(), late.last_words()) == ("one", None, None)
    with path.open("a") as file:
        file.write(f"{'x' * 100_000}\n{record('critical', reason='two')}\n{record('critical', reason='three')}\n")
    assert (early.last_words(), late.last_words()) == ("three", "three")
    path.write_text(f"{record('critical', reason='new file')}\n")
    assert early.last_words() == "new file"
