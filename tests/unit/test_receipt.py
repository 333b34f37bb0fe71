"""The receipt of a turn (step 10): from the log alone, equal to what its model was shown, and nobody else's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from contracts.envelope import Event
from contracts.queries import PAGE_BYTES
from contracts.receipts import End, Receipt
from contracts.turns import read_context
from services.history.effects import Queue
from services.history.evidence import evidence_of
from services.history.log.port import Stored
from services.history.log.reader import LogReader
from services.history.receipt import receipt_of
from services.history.tools.turns import TurnNotFound, find_turn
from services.operator.cli import app
from tests.conversing import MODEL, USER, completed, make_event, message, new_id, session_started
from tests.recording import DIGEST, NOW, Scene, begin, cancel, ended, only, scene

SYSTEM = "Be brief. ☂"


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


async def receipt(on: Scene, said: Event, after: int = 0, user_id: str = USER) -> Receipt | None:
    """As history and the operator's tools read it; None: the turn has no context."""
    reader = await LogReader.open(on.path)
    try:
        found = await evidence_of(reader, user_id, said.session_id, str(said.turn_id))
    finally:
        await reader.close()
    return receipt_of(found, after) if found else None


async def shown(on: Scene, said: Event) -> list[tuple[str, str]]:
    """(role, text) of all its pages, the system prompt first."""
    page = await receipt(on, said)
    assert page is not None
    messages = [("system", page.system)] if page.system else []
    while True:
        messages += [(each.role, each.text) for each in page.messages]
        if page.next is None:
            return messages
        page = await receipt(on, said, page.next)
        assert page is not None


async def test_it_says_what_is_behind_an_answer(on: Scene) -> None:
    session_id = new_id()
    on.take(session_started(session_id, system=SYSTEM))
    failed, _ = on.running(session_id, "eins")
    on.take(ended(failed, "answer_failed", 1, text="half"))
    said = message(session_id, "zwei", options={"temperature": 0.5, "seed": 7})
    on.take(said)
    runs = [new_id(), new_id()]
    for run in runs:
        on.claim(said, run)
    usage = {"prompt_tokens": 21, "completion_tokens": 3}
    on.take(cancel(said))
    on.take(ended(said, "answer_cancelled", 2, text="dr", usage=usage, model="m"))
    found = await receipt(on, said)
    assert found is not None
    assert (found.session_id, found.turn_id, found.answer_id) == (
        session_id, said.turn_id, said.envelope.data["answer_id"],
    )  # fmt: skip
    assert (found.model, found.digest, found.system, found.seed) == (MODEL, DIGEST, SYSTEM, 7)
    assert found.options == {"temperature": 0.5, "seed": 7}
    assert [(each.role, each.text, each.version) for each in found.messages] == [
        ("user", "eins", 2),
        ("user", "zwei", 6),
    ]
    assert (found.left_out, found.verified, found.next) == ({"failed": 1}, True, None)
    assert [(each.attempt, each.run) for each in found.attempts] == [(1, runs[0]), (2, runs[1])]
    assert found.end == End(type="answer_cancelled", version=11, attempt=2, code="cancelled", model="m", usage=usage)
    assert [(each.type, each.schema_version, each.position) for each in found.events] == [
        ("user_message_submitted", 1, 6), ("context_assembled", 2, 7), ("answer_started", 1, 8),
        ("answer_started", 1, 9), ("cancel_requested", 1, 10), ("answer_cancelled", 1, 11),
    ]  # fmt: skip


async def test_it_equals_what_was_queued_whatever_came_afterwards(on: Scene) -> None:
    """Of each turn of a session: a failed one, a stopped one, one that answers an earlier message, a running one."""
    session_id = new_id()
    on.take(session_started(session_id, system=SYSTEM))
    queued: list[tuple[Event, list[tuple[str, str]]]] = []
    ends = ["answer_completed", "answer_failed", "answer_cancelled", "answer_completed", None]
    for number, end in enumerate(ends):
        branch = {"parent_id": queued[0][0].envelope.data["answer_id"]} if number == 3 else {}
        said = message(session_id, f"q{number} " + "x" * 700 * number, **branch)
        on.take(said)
        queued.append((said, list(read_context(only(on.of(Queue)).payload).messages)))
        on.claim(said, new_id())
        if end == "answer_completed":
            on.take(completed(session_id, str(said.turn_id), text=f"a{number} " + "y" * 5000))
        elif end is not None:
            on.take(ended(said, end, 1, text=f"half of {number}"))
    left_out = []
    for said, messages in queued:
        found = await receipt(on, said)
        assert found is not None
        assert found.verified
        assert await shown(on, said) == messages
        left_out.append(found.left_out)
    assert left_out == [{}, {}, {"failed": 1}, {}, {"budget": 3, "front": 1}]


async def test_imported_messages_are_in_it_each_with_its_own_text(on: Scene) -> None:
    """One event holds many."""
    session_id, asked, told = begin(on), new_id(), new_id()
    messages = [
        {"message_id": asked, "parent_id": None, "role": "user", "text": "eins"},
        {"message_id": told, "parent_id": asked, "role": "assistant", "text": "zwei"},
    ]
    event = make_event("session_imported", session_id, {"source": "chatgpt", "messages": messages, "head": told})
    with on.log.transaction(on.recorder.cursor, on.recorder.cursor) as tx:
        tx.append(Stored(2, 2, NOW, event))
    on.reopen()
    said = message(session_id, "drei")
    on.take(said)
    assert await shown(on, said) == list(read_context(only(on.of(Queue)).payload).messages)
    found = await receipt(on, said)
    assert found is not None
    assert [(each.text, each.position) for each in found.messages] == [("eins", 2), ("zwei", 2), ("drei", 3)]


async def test_a_changed_text_is_told(on: Scene) -> None:
    session_id = begin(on)
    said, _ = on.running(session_id, "a heron")
    with closing(sqlite3.connect(on.path)) as connection, connection:
        connection.execute(
            "UPDATE events SET body = CAST(replace(body, 'a heron', 'a crane') AS BLOB) WHERE version = 2"
        )
    found = await receipt(on, said)
    assert found is not None
    assert not found.verified
    assert found.messages[0].text == "a crane"


async def test_a_turn_without_a_context_has_none(on: Scene) -> None:
    session_id = begin(on)
    on.running(session_id)
    waiting, stopped = message(session_id), message(session_id)
    on.take(waiting, stopped, cancel(stopped))
    assert [await receipt(on, each) for each in (waiting, stopped)] == [None, None]


async def test_another_users_turn_is_not_there(on: Scene) -> None:
    said, _ = on.running(begin(on))
    assert await receipt(on, said, user_id="ann") is None
    assert await receipt(on, said) is not None


async def test_a_turn_that_is_not_there_is_one_clear_line(on: Scene, tmp_path: Path) -> None:
    """For the terminal, which reads the log's file."""
    session_id = begin(on)
    said, _ = on.running(session_id)
    waiting = message(session_id)
    on.take(waiting)
    turn = str(said.turn_id)
    assert (await find_turn(tmp_path, USER, turn)).context.turn_id == turn
    for folder, user_id, turn_id, why in (
        (tmp_path, "ann", turn, "ann has no turn"),
        (tmp_path, USER, str(waiting.turn_id), "no context was assembled"),
        (tmp_path / "none", USER, turn, "there is no log in"),
    ):
        with pytest.raises(TurnNotFound, match=why):
            await find_turn(folder, user_id, turn_id)


@pytest.mark.parametrize(
    ("turn", "why"),
    [("name:tour", "is not a turn's id"), ("7BB61A6C-412B-5A7A-BEFF-D4FB52AEF883", "local has no turn")],
)
def test_what_is_typed_for_a_turn_is_looked_at(on: Scene, turn: str, why: str) -> None:
    for command in ("receipt", "rerun"):
        done = CliRunner().invoke(app, [command, turn, "--data-dir", str(on.folder)])
        assert (done.exit_code, done.output.count("\n"), why in done.output) == (1, 1, True), done.output


async def test_a_large_one_comes_in_pages(on: Scene) -> None:
    """Each fits a message on the bus; a text that does not fit a page is one alone."""
    on.window = 10_000_000
    session_id = begin(on)
    half = PAGE_BYTES // 2 - 100
    for number, size in enumerate([half, half, 10, PAGE_BYTES + 1]):
        said, _ = on.running(session_id, f"q{number}")
        on.take(completed(session_id, str(said.turn_id), text="x" * size))
    said = message(session_id, "last")
    on.take(said)
    messages = list(read_context(only(on.of(Queue)).payload).messages)
    assert await shown(on, said) == messages
    first = await receipt(on, said)
    assert first is not None
    assert first.next == 7
    assert sum(len(each.text) for each in first.messages) <= PAGE_BYTES
    beyond = await receipt(on, said, after=1000)
    assert beyond is not None
    assert (beyond.messages, beyond.next) == ([], None)


async def test_of_a_context_that_was_made_again_the_answer_names_the_model(on: Scene) -> None:
    """A restored log meets an answer whose context it never had, before a worker has said which models there are."""
    session_id, on.model = begin(on), None
    said = message(session_id, "which one?")
    on.take(said, catching_up=True)
    on.claim(said, new_id(), catching_up=True)
    found = await receipt(on, said)
    assert found is not None
    assert found.model == "unknown"
    on.take(completed(session_id, str(said.turn_id), text="this one"), catching_up=True)
    found = await receipt(on, said)
    assert found is not None
    assert (found.model, found.end and found.end.model) == (MODEL, MODEL)
