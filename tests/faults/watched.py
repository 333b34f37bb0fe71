"""Decides from what clients were sent whether P4 and P5 held: in order, no gap, no duplicate, nothing cut looks whole.

Owns the rules for watchers of a session and for streams of one answer. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tests.faults.evidence import Evidence, Row, Violation
from tests.faults.journal import Entry
from tests.folding import TERMINALS, SessionView

# Ends of a connection that say: that was all.
LOOKS_WHOLE = ("clean", "204", "close 1000")


def what_clients_saw(found: Evidence) -> Iterator[Violation]:
    for name, entries in found.entries_of("watch").items():
        yield from _watch(name, entries, found.of_session[entries[0]["session_id"]])
    for name, entries in found.entries_of("stream").items():
        yield from _stream(name, entries, found)


def _watch(name: str, entries: Sequence[Entry], recorded: list[Row]) -> Iterator[Violation]:
    """One watcher over all its connections: each event once, in order, as the log has it."""
    view = SessionView(entries[0]["session_id"])
    broken: list[str] = []
    last = ""
    for entry in entries:
        if entry["kind"] == "open":
            last = ""
            if entry["after"] is None:
                broken, view = broken + view.broken, SessionView(view.session_id)
        elif entry["kind"] == "frame":
            frame = json.loads(entry["raw"])
            last = frame["type"]
            if last not in ("refused", "error"):
                yield from _differs(name, view, frame, recorded)
                view.take(entry["raw"])
        elif entry["how"] in LOOKS_WHOLE and last not in ("error", "resync") and (turns := _unfinished(view)):
            yield Violation("P5", f"watch {name} ended as if whole ({entry['how']}) within turn {turns[0]}")
    for rule in broken + view.broken:
        yield Violation("P4", f"watch {name}: {rule}")
    if view.version != len(recorded):
        yield Violation("LIVENESS", f"watch {name} stands at version {view.version} of {len(recorded)}")


def _unfinished(view: SessionView) -> list[str]:
    """The turns that this client saw begin to be answered, and not end."""
    return [turn for turn, answer in view.answers.items() if answer.attempt and answer.ended_by is None]


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


def _stream(name: str, entries: Sequence[Entry], found: Evidence) -> Iterator[Violation]:
    """A streamed answer: the events and tokens of one turn, in order; whole only with its end, or an error."""
    session_id = str(entries[0]["session_id"])
    view, version, said_its_end = SessionView(session_id), 0, False
    for entry in entries:
        if entry["kind"] == "frame":
            frame = json.loads(entry["raw"])
            said_its_end = _is_an_end(frame)
            if frame["type"] == "event":
                if frame["version"] <= version:
                    yield Violation("P4", f"stream {name}: version {frame['version']} after {version}")
                version = frame["version"]
                view.version = version - 1  # other turns' events are not in this stream
                yield from _differs(f"stream {name}", view, frame, found.of_session[session_id])
            if frame["type"] in ("event", "token", "answer_so_far"):
                view.take(entry["raw"])
        elif entry["kind"] == "closed" and entry["how"] in LOOKS_WHOLE and not said_its_end:
            yield Violation("P5", f"stream {name} ended as if whole, without an end or an error")
    for rule in view.broken:
        yield Violation("P4", f"stream {name}: {rule}")


def _is_an_end(frame: dict[str, Any]) -> bool:
    if frame["type"] == "event":
        return frame["event"]["type"] in TERMINALS
    return frame["type"] in ("error", "refused")
