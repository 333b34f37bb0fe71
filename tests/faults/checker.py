"""Decides from journals and the log whether the promises held: P1 to P6, and that every turn ended. Pure.

Owns what counts as a violation, each with its evidence; what watchers saw is decided in watched.py. Must never wait,
read a file or ask a process.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator

from tests.faults.evidence import Evidence, Violation
from tests.faults.journal import Entry
from tests.faults.watched import what_clients_saw
from tests.folding import TERMINALS

FIRST_HASH = bytes(32)


def check(found: Evidence) -> list[Violation]:
    """Every broken promise."""
    return [
        *(
            Violation("CLIENT", f"a client died of {entry['error']}")
            for entry in found.journal
            if entry["kind"] == "died"
        ),
        *_accepted_is_durable(found),
        *_each_accepted_send_has_one_outcome(found),
        *_one_end_per_turn(found),
        *_attempts_in_order(found),
        *_chain_is_unbroken(found),
        *_views_equal_a_replay(found),
        *what_clients_saw(found),
        *_a_repeat_is_one_turn(found),
    ]


def _accepted_is_durable(found: Evidence) -> Iterator[Violation]:
    for key, answers in found.sends.items():
        told = [entry for entry in answers if entry["kind"] == "ok"]
        for entry in told:
            row = found.by_event.get(entry["event_id"])
            if row is None:
                yield Violation("P1", f"send {key} was {entry['status']} and is not in the log")
            elif entry["status"] == "recorded" and (row.position, row.version) != (entry["position"], entry["version"]):
                yield Violation("P1", f"send {key} was told position {entry['position']}, it is at {row.position}")
        if not told and any(entry["kind"] == "unknown" for entry in answers):
            yield Violation("LIVENESS", f"send {key} never learnt its outcome")
    texts = {row.event["data"]["text"] for row in found.rows if row.type == "user_message_submitted"}
    for key, answers in found.sends.items():
        sure = {entry["kind"] for entry in answers} == {"fail"}
        if sure and f"say {key}" in texts:
            yield Violation("P1", f"send {key} was refused each time and is in the log")


def _each_accepted_send_has_one_outcome(found: Evidence) -> Iterator[Violation]:
    """What a door says of it at the end, and what the client was told of its answer, is what the log has."""
    for entry in found.journal:
        if entry.get("op") != "outcome":
            continue
        row, end = found.by_event.get(str(entry["event_id"])), found.ends.get(entry["turn_id"])
        if entry["status"] != "recorded" or row is None or row.turn_id != entry["turn_id"]:
            yield Violation("P1", f"send {entry['key']} was accepted; its outcome at the end: {entry['status']}")
        elif end is not None and end.type != f"answer_{entry['turn_status']}":
            yield Violation("P3", f"turn {end.turn_id}: {end.type} in the log, {entry['turn_status']} at a door")
    for key, answers in found.sends.items():
        for entry in answers:
            end = found.ends.get(str(entry.get("turn_id")))
            if "answer" in entry and (end is None or end.event["data"].get("text") != entry["answer"]):
                yield Violation("P2", f"send {key} was given an answer that is not its end's")
            if "ended" in entry and (end is None or entry["ended"] not in _names(end.type, end.event["data"])):
                yield Violation("P2", f"send {key} was told {entry['ended']}, its end is {end and end.type}")


def _names(kind: str, data: dict[str, str]) -> set[str]:
    """How a client may be told of an end: by its event, or by its code."""
    return {kind, data.get("code", "")}


def _one_end_per_turn(found: Evidence) -> Iterator[Violation]:
    ends = Counter(row.turn_id for row in found.rows if row.type in TERMINALS)
    turns = {row.turn_id for row in found.rows if row.type == "user_message_submitted"}
    for turn_id in turns - ends.keys():
        yield Violation("LIVENESS", f"turn {turn_id} has no end")
    for turn_id, count in ends.items():
        if count > 1:
            yield Violation("P2", f"turn {turn_id} has {count} ends")
        if turn_id not in turns:
            yield Violation("P2", f"turn {turn_id} ended and never began")


def _attempts_in_order(found: Evidence) -> Iterator[Violation]:
    """An end is the latest attempt's; or of an earlier one, from before the latest began: a history that catches up
    believes the first end that it meets, and the claim behind it may have come first.
    """
    ended: set[str] = set()
    attempts: dict[str, int] = defaultdict(int)
    began: dict[str, str] = {}
    for place, row in enumerate(found.rows, start=1):
        if row.position != place:
            yield Violation("P2", f"position {row.position} where {place} should be")
        if row.type == "answer_started":
            attempts[row.turn_id] += 1
            began[row.turn_id] = row.event.get("occurred_at", "")
            if row.turn_id in ended or row.event["data"]["attempt"] != attempts[row.turn_id]:
                yield Violation("P2", f"turn {row.turn_id}: attempt {row.event['data']['attempt']} out of order")
        elif row.type in TERMINALS:
            ended.add(row.turn_id)
            attempt, latest = row.event["data"]["attempt"], attempts[row.turn_id]
            before = attempt < latest and row.event.get("occurred_at", "") < began[row.turn_id]
            if attempt != latest and not before:
                yield Violation("P2", f"turn {row.turn_id} was ended by attempt {attempt}")


def _chain_is_unbroken(found: Evidence) -> Iterator[Violation]:
    """By the recipe of the contract, written here again: each hash holds the one before it."""
    previous = FIRST_HASH
    for link in found.chain:
        digest = hashlib.sha256(previous)
        for value in link.fields:
            raw = None if value is None else str(value).encode()
            digest.update(b"\xff\xff\xff\xff" if raw is None else len(raw).to_bytes(4, "big") + raw)
        digest.update(link.body_hash)
        if digest.digest() != link.hash or hashlib.sha256(link.body).digest() != link.body_hash:
            yield Violation("CHAIN", f"the hash chain of the log breaks at position {link.fields[0]}")
            return
        previous = link.hash


def _views_equal_a_replay(found: Evidence) -> Iterator[Violation]:
    for table in found.replayed.keys() | found.folded.keys():
        if found.folded.get(table) != found.replayed.get(table):
            yield Violation("P3", f"table {table} of the views is not what a replay gives")


def _a_repeat_is_one_turn(found: Evidence) -> Iterator[Violation]:
    texts = Counter(row.event["data"]["text"] for row in found.rows if row.type == "user_message_submitted")
    for key, answers in found.sends.items():
        if texts[f"say {key}"] > 1:
            yield Violation("P6", f"send {key} made {texts[f'say {key}']} turns")
        if len({_outcome(entry) for entry in answers if entry.get("status") == "recorded"}) > 1:
            yield Violation("P6", f"send {key} has several outcomes")
        if any(entry.get("code") == "idempotency_conflict" for entry in answers):
            yield Violation("P6", f"send {key} was taken for another body")


def _outcome(entry: Entry) -> tuple[object, ...]:
    return entry["event_id"], entry["turn_id"], entry["position"], entry["version"]
