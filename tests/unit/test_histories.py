"""Random histories: whatever writers send, and however often history dies, the promises P2 and P3 hold (D3, D4, D5).

Each history is a list of steps over two users and a few sessions: messages, repeats, claims, ends, stops, garbage,
restarts, aborted batches, and a log restored from an earlier copy while the stream goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.envelope import Event
from contracts.events import TERMINALS
from contracts.queries import MessagesQuery
from contracts.turns import encode_context
from services.history.arrivals import Delivery
from services.history.effects import Queue, Show, TellSender
from services.history.log.port import Cursor, LogError, chain_hash
from services.history.log.reader import LogReader
from services.history.log.sqlite import SqliteTransaction
from services.history.session import Session, evolve
from services.history.views.past import Past
from services.history.views.reader import ViewReader
from services.history.views.store import ViewStore
from services.history.views.travel import Travel
from tests.conversing import claim, completed, make_event, message, new_id, session_started
from tests.recording import NOW, Scene, cancel, delivered, ended

USERS = ("a", "b")
TABLES = ("sessions", "messages", "turns")


@dataclass
class History:
    """What the writers did so far, and the stream that holds it."""

    on: Scene
    stream: list[Delivery] = field(default_factory=list)
    sessions: list[tuple[str, str]] = field(default_factory=lambda: [(u, new_id()) for u in USERS for _ in range(2)])
    messages: list[Event] = field(default_factory=list)
    sent: list[Event] = field(default_factory=list)
    runs: list[str] = field(default_factory=lambda: [new_id() for _ in range(3)])
    outcomes: dict[str, set[str | None]] = field(default_factory=dict)

    def event(self, kind: str, pick: int) -> Event | Delivery | None:
        user, session_id = self.sessions[pick % len(self.sessions)]
        if kind == "start":
            return session_started(session_id, user_id=user)
        if kind in ("delete", "undelete"):
            event_type = "session_deleted" if kind == "delete" else "session_restored"
            return make_event(event_type, session_id, {}, user_id=user)
        if kind == "say":
            self.messages.append(message(session_id, f"text {pick}", user_id=user))
            return self.messages[-1]
        if not self.messages:
            return None
        of = self.messages[pick % len(self.messages)]
        turn_id, attempt = str(of.turn_id), 1 + pick % 3
        if kind == "repeat":
            return self.sent[pick % len(self.sent)]
        if kind == "conflict":
            return make_event(
                of.type, of.session_id, {**of.envelope.data, "text": "other"},
                user_id=of.user_id, turn_id=turn_id, event_id=of.event_id,
            )  # fmt: skip
        if kind == "claim":
            return claim(of.session_id, turn_id, self.runs[pick % 3], user_id=of.user_id)
        if kind == "complete":
            return completed(of.session_id, turn_id, attempt, f"answer {pick}", user_id=of.user_id)
        if kind == "fail":
            return ended(of, "answer_failed", attempt, text="half")
        if kind == "stop":
            return cancel(of)
        return replace(delivered(of), body=b"garbage")

    def send(self, kind: str, pick: int) -> None:
        made = self.event(kind, pick)
        if isinstance(made, Event):
            self.sent.append(made)
            made = delivered(made)
        if made is not None:
            self.stream.append(replace(made, sequence=len(self.stream) + 1))

    def follow(self, *, catching_up: bool = False, broken: bool = False) -> None:
        """What is in the stream after the cursor, as one batch. broken: the disk fails at its last row."""
        reached = self.on.recorder.cursor.sequence
        batch = self.stream[reached:]
        if not batch:
            return
        after = Cursor("stream", len(self.stream))
        if broken:
            self._fail_once(batch, after)
        committed = self.on.recorder.record(batch, after, self.on.situation(catching_up))
        self.on.did(committed)
        self._check_effects()

    def _fail_once(self, batch: list[Delivery], after: Cursor) -> None:
        real = SqliteTransaction.append
        left = [len(batch)]

        def full(tx: SqliteTransaction, stored: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise LogError("disk full")
            real(tx, stored)

        SqliteTransaction.append = full  # type: ignore[method-assign,assignment]
        try:
            self.on.recorder.record(batch[:-1] + [batch[-1]] * 2, after, self.on.situation())
        except LogError:
            pass  # the point of it: what follows decides the same batch again
        else:
            self.on.reopen()
        finally:
            SqliteTransaction.append = real  # type: ignore[method-assign]

    def _check_effects(self) -> None:
        for told in self.on.of(TellSender):
            self.outcomes.setdefault(told.outcome.event_id, set()).add(told.outcome.code)


RARE = ["repeat", "conflict", "fail", "stop", "overdue", "garbage", "restart", "broken", "copy", "restore"]
RARE += ["delete", "undelete"]
OFTEN = ["say"] * 5 + ["claim"] * 5 + ["complete"] * 4 + ["follow"] * 3
steps = st.lists(st.tuples(st.sampled_from(["start", *OFTEN, *RARE]), st.integers(0, 11)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(steps=steps)
def test_any_history(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        history = History(Scene(folder))
        views = asyncio.run(fold_to_end(folder))
        for kind, pick in [("start", n) for n in range(4)] + steps:
            take_step(history, kind, pick, folder)
            if pick == 0:
                views = asyncio.run(fold_to_end(folder))
        history.follow()
        check_log(history.on)
        check_outcomes(history)
        views = asyncio.run(fold_to_end(folder))
        for path in folder.glob("views-*"):
            path.unlink()
        rebuilt = asyncio.run(fold_to_end(folder))
        assert views == rebuilt, "folded live and rebuilt from position 1"
        check_views(history.on, rebuilt)
        asyncio.run(check_past(folder, rebuilt))
        check_queue(history.on)
        history.on.log.close()


def take_step(history: History, kind: str, pick: int, folder: Path) -> None:
    if kind == "follow":
        history.follow()
    elif kind == "restart":
        history.on.reopen()
        history.follow(catching_up=True)
        history.on.start_waiting()
    elif kind == "overdue":
        turns = [(turn, "cancelled") for turn in history.on.recorder.open_turns() if turn.cancelling]
        history.on.end(turns)
    elif kind == "broken":
        history.follow(broken=True)
    elif kind == "copy":
        copy = folder / f"copy-{pick}"
        if not copy.exists():
            with history.on.look() as source:
                source.execute("VACUUM INTO ?", (str(copy),))
    elif kind == "restore":
        restore(history, pick, folder)
    else:
        history.send(kind, pick)


def restore(history: History, pick: int, folder: Path) -> None:
    """An earlier copy of the log, and all of the stream: what it has seen is decided again."""
    copies = sorted(folder.glob("copy-*"))
    if not copies:
        return
    history.on.log.close()
    shutil.copy(copies[pick % len(copies)], folder / "log.db")
    for suffix in ("-wal", "-shm"):
        (folder / f"log.db{suffix}").unlink(missing_ok=True)
    history.on.effects.clear()
    history.on.open()
    history.follow(catching_up=True)
    history.on.start_waiting()


async def fold_to_end(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """The views' rows after folding all that is in the log, from wherever they were."""
    reader = await LogReader.open(folder / "log.db")
    store = await ViewStore.open(folder, reader)
    try:
        while rows := await reader.rows_after(store.position, 7):
            await store.apply(rows)
        return {
            table: [
                tuple(row) for row in await store.reading.execute_fetchall(f"SELECT * FROM {table} ORDER BY 1, 2, 3")
            ]
            for table in TABLES
        }
    finally:
        await store.close()
        await reader.close()


def check_log(on: Scene) -> None:
    """Positions and versions are dense, one terminal for each turn at most, the chain holds."""
    rows = on.sql("SELECT position, user_id, session_id, version, turn_id, type, hash FROM events ORDER BY position")
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    versions: dict[tuple[str, str], int] = {}
    ends: set[tuple[str, str]] = set()
    for _, user, session_id, version, turn_id, event_type, _ in rows:
        assert version == versions.get((user, session_id), 0) + 1
        versions[(user, session_id)] = version
        if event_type in TERMINALS:
            assert (user, turn_id) not in ends
            ends.add((user, turn_id))
    previous = bytes(32)
    stored = {row.position: row for key in versions for row in on.rows(*key)}
    for position, *_, found in rows:
        row = stored[position]
        previous = chain_hash(previous, row, row.event.data_hash, hashlib.sha256(row.event.body).digest())
        assert previous == found


def check_outcomes(history: History) -> None:
    """Every event that was sent, but claims, has its outcome in the log, and it is the last that was told."""
    for event in history.sent:
        found = history.on.outcome_in_log(event.user_id, event.event_id)
        if event.type == "turn_claimed":
            assert found is None
        else:
            assert found is not None, event.type
            assert found.code in history.outcomes[event.event_id]


def check_views(on: Scene, views: dict[str, list[tuple[Any, ...]]]) -> None:
    """The state folded from the log says the same as the views, of every session and turn."""
    turns, messages = 0, 0
    with on.log.look() as tx:
        for user, session_id, _, title, _, _, _, head, version, *_, deleted_at, _ in views["sessions"]:
            session = Session(user, session_id)
            for row in tx.session_rows(user, session_id):
                evolve(session, row.event, row.position)
            assert (session.title, session.head, session.version) == (title, head, version)
            assert session.deleted_at == deleted_at
            by_id = {row[2]: row for row in views["turns"]}
            # Those that a worker was still to end when their session began again are no turns of its views.
            shown = [turn for turn in session.turns.values() if turn.message_id in session.messages]
            for turn in shown:
                status = {"waiting": "waiting", "dispatched": "waiting", "running": "running"}.get(turn.phase)
                status = status or str(turn.ended_by).removeprefix("answer_")
                assert (by_id[turn.turn_id][6], by_id[turn.turn_id][7]) == (status, turn.attempt), asdict(turn)
            texts = {row[2]: (row[3], len(row[6])) for row in views["messages"]}
            for each in session.messages.values():
                assert texts[each.message_id] == (each.parent_id, each.chars)
            turns, messages = turns + len(shown), messages + len(session.messages)
    assert (turns, messages) == (len(views["turns"]), len(views["messages"]))


async def check_past(folder: Path, views: dict[str, list[tuple[Any, ...]]]) -> None:
    """Each session as it was at its last version is what the views say of it."""
    reader = await LogReader.open(folder / "log.db")
    store = await ViewStore.open(folder, reader)
    travel = Travel(reader, keep_deleted_s=1e9, now=lambda: NOW)
    try:
        for user, session_id, *_ in views["sessions"]:
            query = MessagesQuery(user_id=user, session_id=session_id)
            past = await travel.past(query, 10**9)
            assert isinstance(past, Past)
            assert past.session() == await ViewReader(store).session(user, session_id)
            assert past.messages() == await ViewReader(store).messages(query)
    finally:
        await store.close()
        await reader.close()


def check_queue(on: Scene) -> None:
    """The context that a turn's worker was given can be made again from the log, byte for byte."""
    given = {queued.turn_id: queued.payload for queued in on.effects if isinstance(queued, Queue)}
    for again in on.requeue():
        context = json.loads(again.payload)
        shown = given.get(again.turn_id, again.payload)
        texts = [[m["role"], m["content"]] for m in json.loads(shown)["messages"]]
        assert [[m["role"], m["content"]] for m in context["messages"]] == texts
        [(body,)] = on.sql("SELECT body FROM events WHERE event_id = ?", context["event"]["event_id"])
        assert again.payload == encode_context(body, context["messages"])
    assert all(isinstance(frame.frame, bytes) for frame in on.effects if isinstance(frame, Show))
