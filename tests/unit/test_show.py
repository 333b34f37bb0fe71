"""`chatlog show`: a session of the log as it was, and what changed in it, with who did it and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from contracts.ids import session_id_of_name
from services.operator.cli import app
from tests.conversing import USER, completed, make_event, message, session_started
from tests.recording import Scene, cancel, ended, scene

SESSION = session_id_of_name(USER, "tour")


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


def show(on: Scene, *options: str, of: str = "name:tour") -> list[str]:
    """What it prints."""
    done = CliRunner().invoke(app, ["show", of, *options, "--data-dir", str(on.folder)])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def told(on: Scene, *options: str) -> list[Any]:
    return [json.loads(line) for line in show(on, *options, "--json")]


def a_life(on: Scene) -> dict[str, str]:
    """A session in which everything happens that is told; its runs."""
    on.take(session_started(SESSION, name="tour", title="A tour"))
    first, run = on.running(SESSION, "Where to?")  # 2 to 4
    on.take(completed(SESSION, str(first.turn_id), text="Paris.\nReally."))
    on.take(make_event("session_renamed", SESSION, {"title": "Paris"}))
    edited, other_run = _running(on, message(SESSION, "Where from?", parent_id=None))  # 7 to 9
    on.take(cancel(edited), ended(edited, "answer_cancelled", 1, text="Fr", model="m"))  # 10, 11
    on.take(make_event("session_configured", SESSION, {"on_busy": "interrupt"}))
    _running(on, message(SESSION, "slow"))  # 13 to 15
    hasty = message(SESSION, "quick")
    on.take(hasty)  # 16, and 17 stops the slow one
    on.end([(turn, "cancelled") for turn in on.recorder.open_turns() if turn.cancelling])  # 18; 19 is a context
    on.take(make_event("session_deleted", SESSION, {}))  # 20, and 21, 22 stop the quick one
    on.take(make_event("session_restored", SESSION, {}), make_event("session_deleted", SESSION, {}))
    on.take(session_started(SESSION, name="tour"), message(SESSION, "Where to?"))  # 25, 26
    return {"first": run, "edited": other_run}


def _running(on: Scene, said: Any) -> tuple[Any, str]:
    on.take(said)
    run = session_id_of_name("run", said.event_id)
    on.claim(said, run)
    return said, run


def test_what_changed_and_who_did_it(on: Scene) -> None:
    runs = a_life(on)
    user, worker = f"user {USER}", f"worker run {runs['first']}"
    changes = told(on, "--diff", "..")
    assert [(each["version"], each["who"], each["what"], each["because"]) for each in changes] == [
        (1, user, "began", None),
        (2, user, "said", None),
        (5, worker, "answered", None),
        (6, user, "renamed", None),
        (7, user, "edited", None),
        (10, user, "stop asked", None),
        (11, f"worker run {runs['edited']}", "stopped", None),
        (12, user, "on_busy set", None),
        (13, user, "said", None),
        (16, user, "said", None),
        (17, "history", "stop asked", "the message at version 16"),
        (18, "history", "stopped", "the stop at version 17"),
        (20, user, "deleted", None),
        (21, "history", "stop asked", "the delete at version 20"),
        (22, "history", "stopped", "the stop at version 21"),
        (23, user, "restored", None),
        (24, user, "deleted", None),
        (25, user, "began again, empty", None),
        (26, user, "said", None),
    ]  # fmt: skip
    seen = {each["version"]: (each["before"], each["after"]) for each in changes}
    assert seen[5] == (None, "Paris.\nReally.")
    assert seen[6] == ("A tour", "Paris")
    assert seen[7] == ("Where to?", "Where from?")
    assert seen[11] == (None, "Fr")
    assert seen[12] == ("queue", "interrupt")
    assert seen[26] == (None, "Where to?"), "what was said before the delete is no version of it"
    assert told(on, "--diff", "5..10") == [each for each in changes if 5 < each["version"] <= 10]
    lines = show(on, "--diff", "5..7")
    assert lines[1:3] == ["  - A tour", "  + Paris"]
    assert lines[3].endswith(f", user {USER}: edited")
    assert show(on, "--diff", "2..4") == ["nothing changed"]


def test_a_session_as_it_was(on: Scene) -> None:
    a_life(on)
    [then] = told(on, "--at", "9")
    assert (then["title"], then["version"], then["deleted_at"]) == ("Paris", 9, None)
    assert [each["text"] for each in then["messages"]] == ["Where to?", "Paris.\nReally.", "Where from?", ""]
    lines = show(on, "--at", "9")
    assert lines[0] == "Paris"
    assert lines[3].endswith(", in another branch")
    assert lines[6:9] == [lines[6], "  Paris.", "  Really."]
    assert told(on, "--at", "24")[0]["deleted_at"] is not None, "whoever has the data folder has the deleted, too"
    [now] = told(on)
    assert (now["title"], now["version"], [each["text"] for each in now["messages"]]) == (None, 27, ["Where to?", ""])
    assert told(on, "--at", "2999-01-01T00:00:00Z") == [now]
    assert show(on, "--at", "24", of=SESSION.upper())[2].startswith("deleted ")


def test_nothing_that_was_said_reaches_the_terminal_s_own_language(on: Scene) -> None:
    on.take(session_started(SESSION, name="tour", title="\x1b[2J"), message(SESSION, "a\x1b]0;b\x07\rc"))
    assert "\x1b" not in "".join(show(on) + show(on, "--diff", ".."))
    assert "\\x1b[2J" in show(on)[0]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--at", "0"], 2),
        (["--at", "soon"], 2),
        (["--diff", "3"], 2),
        (["--diff", "a..b"], 2),
        (["--at", "1", "--diff", "1..2"], 2),
        (["--user", "nobody"], 1),
        (["--at", "2001-01-01T00:00:00Z"], 1),
        (["--data-dir", "/nowhere"], 1),
    ],
)
def test_what_cannot_be_shown_is_one_line(on: Scene, options: list[str], code: int) -> None:
    on.take(session_started(SESSION, name="tour"))
    done = CliRunner().invoke(app, ["show", "name:tour", "--data-dir", str(on.folder), *options])
    assert done.exit_code == code
    assert len(done.output.splitlines()) == 1
    assert done.output.startswith("chatlog: ")
