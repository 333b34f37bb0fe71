"""Beside the road: the same events in PyPI's eventsourcing, in an environment of its own, for comparison.

Owns its recorder for SQLite as its documentation has it, and an aggregate that keeps of a session what ours keeps. Runs
where only that library is installed, so it must import nothing of ours. Prints one JSON object.

`python bench/eventsourcing_beside.py append|fold BODIES FOLDER WRITERS SECONDS`; BODIES: one event's body a line.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import StoredEvent
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore

TOPIC = "sessions:Session.Recorded"


class Session(Aggregate):
    """What Chatlog's write side keeps of a session: messages with their parents, turns with their phases."""

    def __init__(self) -> None:
        self.messages: dict[str, tuple[str | None, int]] = {}
        self.turns: dict[str, tuple[str, int]] = {}
        self.head: str | None = None

    @event("Recorded")
    def record(self, body: dict[str, Any]) -> None:
        """One event of ours, applied."""
        data, turn = body["data"], body.get("turn_id", "")
        if body["type"] == "user_message_submitted":
            self.messages[data["message_id"]] = (self.head, len(data["text"]))
            self.messages[data["answer_id"]] = (data["message_id"], 0)
            self.head = data["answer_id"]
            self.turns[turn] = ("waiting", 0)
        elif body["type"] == "answer_started":
            self.turns[turn] = ("running", data["attempt"])
        elif body["type"] == "context_assembled":
            self.turns[turn] = ("dispatched", 0)
        elif body["type"].startswith("answer_"):
            self.turns[turn] = ("ended", data["attempt"])


def append(bodies: list[bytes], folder: Path, writers: int, seconds: float) -> dict[str, Any]:
    """Each writer waits until its event is committed, as one request of a service does."""
    store = SQLiteDatastore(str(folder / "log.db"))
    recorder = SQLiteApplicationRecorder(store)
    recorder.create_table()
    durable = _durability(store)
    counts = [0] * writers
    end = time.perf_counter() + seconds

    def write(number: int) -> None:
        session = uuid4()
        while time.perf_counter() < end:
            counts[number] += 1
            body = bodies[(number + counts[number] * writers) % len(bodies)]
            recorder.insert_events([StoredEvent(session, counts[number], TOPIC, body)])

    began = time.perf_counter()
    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    took = time.perf_counter() - began
    store.close()
    size = sum(path.stat().st_size for path in folder.glob("log.db*"))
    return {"per_s": sum(counts) / took, "bytes_per_event": size / sum(counts), **durable}


def fold(bodies: list[bytes], folder: Path) -> dict[str, Any]:
    """Every session from its stored events, as a repository gives it."""
    app = Application[UUID](env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(folder / "log.db")})
    sessions: dict[str, Session] = {}
    for raw in bodies:
        body = json.loads(raw)
        sessions.setdefault(body["session_id"], Session()).record(body)
    app.save(*sessions.values())
    ids = [session.id for session in sessions.values()]
    began = time.perf_counter()
    for each in ids:
        app.repository.get(each)
    took = time.perf_counter() - began
    app.close()
    return {"per_s": len(bodies) / took}


def _durability(store: SQLiteDatastore) -> dict[str, Any]:
    """What its own connection says: 2 is FULL."""
    with store.transaction(commit=False) as cursor:
        cursor.execute("PRAGMA synchronous")
        synchronous = cursor.fetchone()[0]
        cursor.execute("PRAGMA journal_mode")
        return {"synchronous": synchronous, "journal_mode": cursor.fetchone()[0]}


if __name__ == "__main__":
    what, file, into, count, lasts = sys.argv[1:]
    read = Path(file).read_bytes().splitlines()
    found = append(read, Path(into), int(count), float(lasts)) if what == "append" else fold(read, Path(into))
    sys.stdout.write(json.dumps(found) + "\n")
