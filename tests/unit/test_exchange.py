"""Export and import on real logs, without a stack: what comes back is what was there, or nothing of it does."""

from __future__ import annotations

import io
import json
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from contracts.base import compact
from contracts.imports import ImportCheckQuery, ImportEventsQuery
from services.history.importing import Importing
from services.history.tools.export import export_lines, export_markdown, opened
from services.history.tools.exported_file import FileSession, NotAnExport, Problem, sessions_of
from services.operator import sending
from services.operator.cli import app
from services.operator.sending import event_parts
from tests.conversing import USER, completed, make_event, message, new_id, session_started
from tests.recording import Scene, begin, ended, scene
from tests.unit.test_histories import USERS, History, steps, take_step


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Scene]:
    (tmp_path / "here").mkdir()
    with scene(tmp_path / "here") as made:
        yield made


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Scene]:
    (tmp_path / "there").mkdir()
    with scene(tmp_path / "there") as made:
        yield made


def exported(on: Scene, user: str = USER, *sessions: str) -> bytes:
    """What `chatlog export` writes."""
    file = io.BytesIO()
    with opened(on.path, user) as source:
        export_lines(source, iter(sessions) if sessions else source.sessions(), file.write)
    return file.getvalue()


def imported(on: Scene, file: bytes) -> list[Any]:
    """What `chatlog import` is told of each session."""
    return [_imported(on, each) for each in sessions_of(file.splitlines(keepends=True))]


def _imported(on: Scene, session: FileSession | Problem) -> Any:
    if isinstance(session, Problem):
        return session
    named = {"user_id": session.user_id, "session_id": session.session_id, "by": "a test"}
    digests = [event.digest for event in session.events]
    checked = on.do(lambda importing: importing.check(ImportCheckQuery(**named, first=1, events=digests)))
    if checked.status == "refused":
        return checked
    for part in event_parts(session.events):
        events = [event.exported for event in part]
        reply = on.do(partial(Importing.events, query=ImportEventsQuery(**named, events=events)))
        assert reply.status != "refused", reply
    return checked


def statuses(replies: list[Any]) -> list[str]:
    return [reply.status for reply in replies]


def table(on: Scene, user: str) -> list[tuple[Any, ...]]:
    return on.sql("SELECT session_id, version, recorded_at, body FROM events WHERE user_id = ? ORDER BY 1, 2", user)


@settings(max_examples=40, deadline=None)
@given(steps=steps, part_bytes=st.sampled_from([1, 700, 10**6]))
def test_any_history_comes_back_as_it_was(steps: list[tuple[str, int]], part_bytes: int) -> None:
    """The same bytes, versions, times and state hashes; and an export of the import is the same file."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sending, "PART_BYTES", part_bytes)
        folders = [Path(name, each) for each in ("here", "there")]
        for folder in folders:
            folder.mkdir()
        history, there = History(Scene(folders[0])), Scene(folders[1])
        for kind, pick in [("start", n) for n in range(4)] + steps:
            take_step(history, kind, pick, folders[0])
        history.follow()
        for user in USERS:
            file = exported(history.on, user)
            assert set(statuses(imported(there, file))) <= {"imported"}
            assert exported(there, user) == file
            assert set(statuses(imported(there, file))) <= {"unchanged"}
            assert set(table(there, user)) <= set(table(history.on, user))
            assert set(statuses(imported(history.on, file))) <= {"unchanged"}, "it is the house that it came from"
        assert not there.recorder.open_turns()
        history.on.log.close()
        there.log.close()


def finished(on: Scene, session_id: str, text: str = "hello") -> str:
    said, _ = on.running(session_id, text)
    on.take(completed(session_id, str(said.turn_id), text=f"answer to {text}"))
    return str(said.turn_id)


def test_an_unfinished_turn_comes_with_the_next_export(here: Scene, there: Scene) -> None:
    session_id = begin(here)
    finished(here, session_id)
    said, _ = here.running(session_id, "still running")
    first = exported(here)
    assert b"still running" not in first
    assert statuses(imported(there, first)) == ["imported"]
    here.take(completed(session_id, str(said.turn_id), text="by now"))
    assert statuses(imported(there, exported(here))) == ["imported"], "the rest is appended"
    shown = [json.loads(frame) for frame in there.shown()]
    assert [(frame["version"], frame["session_id"]) for frame in shown] == [(n, session_id) for n in range(6, 10)]
    assert exported(there) == exported(here)
    assert statuses(imported(there, first)) == ["unchanged"], "a shorter file of the same session"


def test_a_file_that_leaves_a_turn_unfinished_starts_nothing(here: Scene, there: Scene) -> None:
    session_id = begin(here)
    finished(here, session_id)
    lines = exported(here).splitlines(keepends=True)
    [close] = [json.loads(line) for line in lines if b'"type":"session"' in line]
    cut = [*lines[:-3], compact(close | {"events": close["events"] - 1}) + b"\n"]
    cut.append(compact({"type": "end", "sessions": 1, "events": close["events"] - 1}))
    assert [each.reason for each in imported(there, b"".join(cut))] == ["a turn of the session is unfinished"]
    [session] = [each for each in sessions_of(lines) if isinstance(each, FileSession)]
    named = {"user_id": USER, "session_id": session_id, "by": "a test"}
    query = ImportEventsQuery(**named, events=[event.exported for event in session.events[:-1]])
    assert there.do(lambda importing: importing.events(query)).code == "turn_unfinished"
    assert there.types(session_id) == []
    assert not there.start_waiting()


def test_nothing_is_imported_over_another_s_ids(here: Scene, there: Scene) -> None:
    """The same event_id is another user's, or of another session of the user's; or the session went on otherwise."""
    session_id = begin(here)
    finished(here, session_id)
    file = exported(here)
    [(taken,)] = here.sql("SELECT event_id FROM events WHERE type = 'answer_completed'")
    began = new_id()
    there.take(make_event("session_started", began, {}, user_id="eve", event_id=taken))
    assert [(r.status, r.code, r.version) for r in imported(there, file)] == [("refused", "conflict", 5)]
    assert there.types(session_id) == []
    [session] = [each for each in sessions_of(file.splitlines(keepends=True)) if isinstance(each, FileSession)]
    named = {"user_id": USER, "session_id": session_id, "by": "a test"}
    query = ImportEventsQuery(**named, events=[event.exported for event in session.events])
    assert there.do(lambda importing: importing.events(query)).code == "conflict", "without asking first, too"
    assert there.types(session_id) == []


def test_another_history_of_the_same_session_is_refused(here: Scene, there: Scene) -> None:
    session_id = begin(here)
    file = exported(here)
    imported(there, file)
    finished(here, session_id, "said here")
    finished(there, session_id, "said there")
    before = table(there, USER)
    assert [(r.code, r.version) for r in imported(there, exported(here))] == [("conflict", 2)]
    assert table(there, USER) == before


def test_a_session_that_runs_here_is_not_gone_on_with(here: Scene, there: Scene) -> None:
    """As after a restored backup: the file has the end of a turn that a worker may still run."""
    session_id = begin(here)
    said, _ = here.running(session_id)
    with here.look() as log:
        log.execute("VACUUM INTO ?", (str(there.folder / "copy"),))
    there.log.close()
    (there.folder / "copy").replace(there.path)
    there.open()
    here.take(completed(session_id, str(said.turn_id)))
    [session] = [
        each for each in sessions_of(exported(here).splitlines(keepends=True)) if isinstance(each, FileSession)
    ]
    named = {"user_id": USER, "session_id": session_id, "by": "a test"}
    query = ImportEventsQuery(**named, events=[event.exported for event in session.events])
    assert there.do(lambda importing: importing.events(query)).code == "session_busy"


def retold(file: bytes, change: Callable[[dict[str, Any]], None], number: int) -> list[bytes]:
    """The file with the event in one line made anew."""
    lines = file.splitlines(keepends=True)
    line = json.loads(lines[number - 1])
    change(line["event"])
    lines[number - 1] = compact(line) + b"\n"
    return lines


@pytest.mark.parametrize(
    ("number", "change", "reason"),
    [
        (3, lambda event: event["data"].update(answer_id=new_id()), "derived"),
        (3, lambda event: event.update(event_id=new_id()), "derived"),
        (3, lambda event: event["data"].update(parent_id=new_id()), "not an answer"),
        (3, lambda event: event.update(type="session_read"), "reserved"),
        (4, lambda event: event["data"].update(message_ids=[new_id()]), "context"),
        (4, lambda event: event.update(event_id=new_id()), "derived"),
        (5, lambda event: event["data"].update(attempt=3), "attempt"),
        (6, lambda event: event.update(turn_id=new_id()), "turn"),
        (6, lambda event: event.update(user_id="eve"), "another user"),
        (6, lambda event: event["data"].pop("usage"), "usage"),
        (2, lambda event: event.update(type="session_renamed", data={"title": "x"}), "begun"),
        (7, lambda event: event.update(type="session_started", data={}), "begun"),
        (7, lambda event: event.update(type="session_restored", data={}), "deleted"),
    ],
)
def test_what_no_history_wrote_is_named_by_its_line(
    here: Scene, there: Scene, number: int, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    """A file that was changed: the line is named, nothing of the session is imported, the next one is."""
    session_id = begin(here)
    finished(here, session_id)
    here.take(make_event("session_renamed", session_id, {"title": "new"}))
    other = "ffffffff" + new_id()[8:]
    here.take(session_started(other))
    refused, taken = imported(there, b"".join(retold(exported(here), change, number)))
    assert (refused.line, taken.status) == (number, "imported")
    assert reason in refused.reason
    assert (there.types(session_id), there.types(other)) == ([], ["session_started"])


def test_history_judges_for_itself(here: Scene, there: Scene) -> None:
    """Whatever a tool sends: an event that cannot follow, or whose cause is not there, is not appended."""
    session_id = begin(here)
    finished(here, session_id)
    [session] = [
        each for each in sessions_of(exported(here).splitlines(keepends=True)) if isinstance(each, FileSession)
    ]
    events = [event.exported for event in session.events]
    caused = json.loads(events[-1].body) | {"causation_id": new_id()}
    for wrong in (
        [events[0], *events[2:]],
        [*events[:-1], events[-1].model_copy(update={"body": compact(caused).decode()})],
        [events[0], events[0].model_copy(update={"version": 2})],
        [events[0].model_copy(update={"body": "{}"})],
    ):
        query = ImportEventsQuery(user_id=USER, session_id=session_id, by="a test", events=wrong)
        assert there.do(partial(Importing.events, query=query)).status == "refused"
        assert there.types(session_id) == []
    assert statuses(imported(there, exported(here))) == ["imported"]
    retold = events[-1].body.replace("answer to hello", "another answer")
    query = ImportEventsQuery(
        user_id=USER, session_id=session_id, by="a test", events=[events[-1].model_copy(update={"body": retold})]
    )
    assert there.do(partial(Importing.events, query=query)).code == "conflict", "the same event with other bytes"
    query = ImportEventsQuery(user_id="eve", session_id=session_id, by="a test", events=events)
    assert there.do(lambda importing: importing.events(query)).code == "unreadable", "it is not eve's"


@pytest.mark.parametrize("lines", [0, 1, 2, 5, 8])
def test_a_cut_file_is_noticed(here: Scene, there: Scene, lines: int) -> None:
    finished(here, begin(here))
    whole = exported(here).splitlines(keepends=True)
    with pytest.raises(NotAnExport):
        imported(there, b"".join(whole[: min(lines, len(whole) - 1)]))


def test_an_export_is_one_user_s(here: Scene) -> None:
    mine, theirs = begin(here), begin(here, "eve")
    finished(here, mine)
    assert theirs.encode() not in exported(here)
    assert theirs.encode() not in exported(here, USER, theirs), "not by its id either"
    with pytest.raises(NotAnExport, match="eve"):
        list(sessions_of(exported(here, "eve").splitlines(keepends=True), USER))


def test_a_session_s_own_end_is_in_the_hash(here: Scene, there: Scene) -> None:
    """A text that was changed in the file, in its own right shape, does not make the state that the file says."""
    finished(here, begin(here))
    lines = retold(exported(here), lambda event: event["data"].update(text="another answer"), 6)
    [problem] = imported(there, b"".join(lines))
    assert "state" in problem.reason


def test_the_markdown_page_keeps_texts_out_of_its_structure(here: Scene) -> None:
    session_id = new_id()
    here.take(session_started(session_id, title="# <b>`x`</b>\n[a](javascript:b)"))
    hostile = "```\n</pre><script>alert(1)</script>\n````\n# not a heading"
    first = message(session_id, hostile)
    here.take(first)
    here.claim(first, new_id())
    here.take(completed(session_id, str(first.turn_id), text="plain"))
    other = message(session_id, "said otherwise", parent_id=None)
    here.take(other)
    here.claim(other, new_id())
    here.take(ended(other, "answer_failed", 1, text="half"))
    file = io.BytesIO()
    with opened(here.path, USER) as source:
        done = export_markdown(source, source.sessions(), file.write)
    page = file.getvalue().decode()
    assert done.sessions == 1
    assert "said otherwise" in page, "the current path"
    assert hostile not in page, "another branch is only counted"
    assert "Said in 2 ways" in page
    assert "2 more in other branches" in page
    assert "failed (model\\_error)" in page or "failed (model_error)" in page
    assert page.startswith("# \\# \\<b\\>\\`x\\`\\<\\/b\\> \\[a\\]\\(javascript:b\\)\n")


@given(st.text(st.sampled_from("`~\n a<"), max_size=40))
@example("```\n</pre>")
def test_no_text_can_end_its_fence(text: str) -> None:
    from services.history.tools.markdown import _fenced

    fence, *inside, closing = _fenced("text", text).removesuffix("\n").split("\n")
    assert closing == re.match("`+", fence)[0]  # type: ignore[index]
    assert "\n".join(inside) == text
    assert not [line for line in inside if re.fullmatch(f" {{0,3}}`{{{len(closing)},}} *", line)]


def test_an_export_reads_one_moment(here: Scene) -> None:
    """What is said while it is written is not half in it."""
    session_id = begin(here)
    finished(here, session_id)
    file = io.BytesIO()
    with opened(here.path, USER) as source:
        sessions = source.sessions()
        first = next(sessions)
        finished(here, session_id, "meanwhile")
        export_lines(source, iter([first]), file.write)
    assert b"meanwhile" not in file.getvalue()


def test_the_log_is_opened_for_reading_only(here: Scene) -> None:
    with opened(here.path, USER) as source, pytest.raises(sqlite3.OperationalError, match="readonly"):
        source._connection.execute("DELETE FROM events")


def test_a_deleted_session_is_exported_as_it_is_and_on_no_page(here: Scene, there: Scene) -> None:
    """Deleted in the midst of a turn, restored, deleted, begun again: another log takes it all as it was."""
    session_id = begin(here)
    finished(here, session_id)
    here.running(session_id, "stopped by the delete")
    deleted = make_event("session_deleted", session_id, {})
    here.take(deleted)
    here.end([(turn, "cancelled") for turn in here.recorder.open_turns()])
    assert statuses(imported(there, exported(here))) == ["imported"]
    page = io.BytesIO()
    with opened(here.path, USER) as source:
        assert export_markdown(source, source.sessions(), page.write).sessions == 0
    here.take(make_event("session_restored", session_id, {}), make_event("session_deleted", session_id, {}))
    here.take(session_started(session_id, title="anew"))
    finished(here, session_id, "again")
    assert statuses(imported(there, exported(here))) == ["imported"]
    assert table(there, USER) == table(here, USER)
    assert exported(there) == exported(here)


def test_a_line_s_end_in_an_event_s_bytes_is_kept(here: Scene, there: Scene) -> None:
    """Nobody of ours writes it so; the bytes are the log's all the same."""
    started = session_started(new_id())
    here.take(replace(started, body=started.body.replace(b",", b",\n")))
    assert statuses(imported(there, exported(here))) == ["imported"]
    assert table(there, USER) == table(here, USER)


def typed(on: Scene, *words: object) -> tuple[int, str, str]:
    """Exit code, what is printed, and what is said beside, of `chatlog export`."""
    done = CliRunner().invoke(app, ["export", *map(str, words), "--data-dir", str(on.folder)])
    return done.exit_code, done.stdout, done.stderr


def test_nothing_is_written_before_it_is_known_to_be_there(here: Scene, tmp_path: Path) -> None:
    file = tmp_path / "none"
    finished(here, begin(here))
    for words, why in (
        (["name:nope"], "local has no session name:nope; --user says whose it is"),
        (["name:nope", "--format", "markdown", "-o", file], "local has no session name:nope; --user says whose it is"),
        (["--user", "bob", "-o", file], "bob has no sessions; --user says whose they are"),
    ):
        assert typed(here, *words) == (1, "", f"chatlog: {why}\n")
    assert not list(tmp_path.glob("none*"))


def test_an_export_replaces_a_file_only_where_that_is_said(here: Scene, tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_text("mine")
    finished(here, begin(here))
    words = "-o", file
    assert typed(here, *words) == (1, "", f"chatlog: {file} is there already; --force replaces it\n")
    assert file.read_text() == "mine"
    assert typed(here, *words, "--force") == (0, "", "exported: sessions 1, events 5\n")
    assert file.read_bytes() == exported(here)
