"""Decides from journals and the log whether the promises held: P1 to P4, P6, and that every turn ended. Pure.

Owns what counts as a violation, each with its evidence. Must never wait, read a file or ask a process.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.faults.journal import Entry
from tests.folding import TERMINALS, SessionView


@dataclass(frozen=True)
class Row:
    """A recorded event, as log.db has it. event: its body, read."""

    position: int
    version: int
    event: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.event["type"])

    @property
    def turn_id(self) -> str:
        return str(self.event.get("turn_id"))


@dataclass(frozen=True)
class Evidence:
    """All that a run left. folded: the rows of each table of the views; replayed: of a fresh fold of the log."""

    journal: Sequence[Entry]
    rows: Sequence[Row]
    folded: dict[str, list[Any]] = field(default_factory=dict)
    replayed: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Violation:
    promise: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}"


def check(found: Evidence) -> list[Violation]:
    """Every broken promise."""
    return [
        *_accepted_is_durable(found),
        *_one_end_per_turn(found),
        *_views_equal_a_replay(found),
        *_clients_see_all_in_order(found),
        *_a_repeat_is_one_turn(found),
    ]


def _accepted_is_durable(found: Evidence) -> Iterator[Violation]:
    by_id = {row.event["event_id"]: row for row in found.rows}
    for key, answers in _sends(found.journal).items():
        told = [entry for entry in answers if entry["kind"] == "ok"]
        for entry in told:
            row = by_id.get(entry["event_id"])
            if row is None:
                yield Violation("P1", f"send {key} was {entry['status']} and is not in the log")
            elif entry["status"] == "recorded" and (row.position, row.version) != (entry["position"], entry["version"]):
                yield Violation("P1", f"send {key} was told position {entry['position']}, it is at {row.position}")
        if not told and any(entry["kind"] == "unknown" for entry in answers):
            yield Violation("LIVENESS", f"send {key} never learnt its outcome")
    texts = {row.event["data"]["text"] for row in found.rows if row.type == "user_message_submitted"}
    for key, answers in _sends(found.journal).items():
        sure = {entry["kind"] for entry in answers} == {"fail"}
        if sure and f"say {key}" in texts:
            yield Violation("P1", f"send {key} was refused each time and is in the log")


def _one_end_per_turn(found: Evidence) -> Iterator[Violation]:
    ends = Counter(row.turn_id for row in found.rows if row.type in TERMINALS)
    turns = [row.turn_id for row in found.rows if row.type == "user_message_submitted"]
    for turn_id in turns:
        if ends[turn_id] == 0:
            yield Violation("LIVENESS", f"turn {turn_id} has no end")
    for turn_id, count in ends.items():
        if count > 1:
            yield Violation("P2", f"turn {turn_id} has {count} ends")
        if turn_id not in turns:
            yield Violation("P2", f"turn {turn_id} ended and never began")
    ended: set[str] = set()
    attempts: dict[str, int] = defaultdict(int)
    for place, row in enumerate(found.rows, start=1):
        if row.position != place:
            yield Violation("P2", f"position {row.position} where {place} should be")
        if row.type == "answer_started":
            attempts[row.turn_id] += 1
            if row.turn_id in ended or row.event["data"]["attempt"] != attempts[row.turn_id]:
                yield Violation("P2", f"turn {row.turn_id}: attempt {row.event['data']['attempt']} out of order")
        elif row.type in TERMINALS:
            ended.add(row.turn_id)
            if row.event["data"]["attempt"] != attempts[row.turn_id]:
                yield Violation("P2", f"turn {row.turn_id} was ended by attempt {row.event['data']['attempt']}")


def _views_equal_a_replay(found: Evidence) -> Iterator[Violation]:
    for table in found.replayed.keys() | found.folded.keys():
        if found.folded.get(table) != found.replayed.get(table):
            yield Violation("P3", f"table {table} of the views is not what a replay gives")


def _clients_see_all_in_order(found: Evidence) -> Iterator[Violation]:
    of_session: dict[str, list[Row]] = defaultdict(list)
    for row in found.rows:
        of_session[row.event["session_id"]].append(row)
    watches: dict[str, list[Entry]] = defaultdict(list)
    for entry in found.journal:
        if "watch" in entry:
            watches[entry["watch"]].append(entry)
    for name, entries in watches.items():
        view = SessionView(entries[0]["session_id"])
        recorded = of_session[view.session_id]
        broken: list[str] = []
        for entry in entries:
            if entry["kind"] == "open" and entry["after"] is None:
                broken, view = broken + view.broken, SessionView(view.session_id)
            elif entry["kind"] == "frame":
                frame = json.loads(entry["raw"])
                if frame["type"] != "refused":
                    yield from _differs(name, view, frame, recorded)
                    view.take(entry["raw"])
        for rule in broken + view.broken:
            yield Violation("P4", f"watch {name}: {rule}")
        if view.version != len(recorded):
            yield Violation("LIVENESS", f"watch {name} stands at version {view.version} of {len(recorded)}")


def _differs(name: str, view: SessionView, frame: dict[str, Any], recorded: list[Row]) -> Iterator[Violation]:
    """An event that is not the log's, or an end whose text is not what its tokens came to."""
    if frame["type"] != "event":
        return
    version, event = frame["version"], frame["event"]
    if version > len(recorded) or recorded[version - 1].event != event:
        yield Violation("P4", f"watch {name}: version {version} is not what the log has")
    shown = view.answers.get(event.get("turn_id", ""))
    if event["type"] == "answer_completed" and shown is not None:
        text = event["data"]["text"]
        whole = shown.index == event["data"]["last_index"]
        if text != shown.text if whole else not text.startswith(shown.text):
            yield Violation("P4", f"watch {name}: the text of turn {event['turn_id']} is not its end's")


def _a_repeat_is_one_turn(found: Evidence) -> Iterator[Violation]:
    texts = Counter(row.event["data"]["text"] for row in found.rows if row.type == "user_message_submitted")
    for key, answers in _sends(found.journal).items():
        if texts[f"say {key}"] > 1:
            yield Violation("P6", f"send {key} made {texts[f'say {key}']} turns")
        outcomes = {
            (entry["event_id"], entry["turn_id"], entry["position"], entry["version"])
            for entry in answers
            if entry["kind"] == "ok" and entry["status"] == "recorded"
        }
        if len(outcomes) > 1:
            yield Violation("P6", f"send {key} has several outcomes: {sorted(outcomes)}")
        if any(entry.get("code") == "idempotency_conflict" for entry in answers):
            yield Violation("P6", f"send {key} was taken for another body")


def _sends(journal: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The answers to each key, in order."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for entry in journal:
        if entry.get("op") == "send" and entry["kind"] != "invoke":
            found[entry["key"]].append(entry)
    return found
