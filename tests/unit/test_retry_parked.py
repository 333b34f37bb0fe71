"""A parked event taken again: in one transaction recorded, refused or parked again, and never decided twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contracts.turns import OutcomeMessage
from services.history import batch
from services.history.batch import Retried
from services.history.effects import Queue, Show, TellSender, TellWorkers
from services.history.log.port import LogError
from services.history.log.sqlite import SqliteTransaction
from tests.conversing import USER, claim, completed, message, new_id
from tests.recording import Scene, begin, delivered, scene


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


def refuse_to_decide(patch: pytest.MonkeyPatch) -> None:
    """As a version that has a bug."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug")

    patch.setattr(batch, "decide", broken)


def retry(on: Scene, parked_id: int = 1) -> Retried | None:
    committed = on.recorder.retry_parked(parked_id, on.situation())
    on.did(committed)
    return committed.retried


def outcome(retried: Retried | None) -> OutcomeMessage:
    assert retried is not None
    assert retried.reason is None
    assert retried.outcome is not None
    return retried.outcome


def test_a_mended_version_records_it_with_all_that_follows(on: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = begin(on)
    said = message(session_id)
    refuse_to_decide(monkeypatch)
    assert on.say(said).code == "event_parked"
    monkeypatch.undo()
    cursor = on.recorder.cursor
    assert (outcome(retry(on)).code, outcome_version(on)) == (None, 2)
    assert on.types(session_id) == ["session_started", "user_message_submitted", "context_assembled"]
    assert on.sql("SELECT body FROM events WHERE event_id = ?", said.event_id) == [(said.body,)]
    assert (len(on.of(TellSender)), len(on.of(Show)), len(on.of(Queue))) == (1, 2, 1)
    assert (on.parked(), on.recorder.cursor) == ([], cursor)
    assert retry(on) is None, "once more finds nothing"
    assert on.last == ()


def outcome_version(on: Scene) -> int | None:
    return on.of(TellSender)[-1].outcome.version


def test_what_is_parked_again_keeps_its_number_and_has_its_new_reason(on: Scene) -> None:
    session_id = begin(on)
    on.take(replace(delivered(message(session_id)), body=b"{}"), replace(delivered(message(session_id)), body=b"["))
    before = on.sql("SELECT parked_id, sequence, subject, headers, body FROM parked ORDER BY parked_id")
    with on.log.transaction(on.recorder.cursor, on.recorder.cursor) as tx:
        parked = tx.unpark(2)
        assert parked is not None
        tx.park(replace(parked, reason="of an older version"), on.now)
    retried = retry(on, 2)
    assert retried is not None
    assert retried.reason
    assert on.sql("SELECT parked_id, sequence, subject, headers, body FROM parked ORDER BY parked_id") == before
    assert on.sql("SELECT reason FROM parked WHERE parked_id = 2") == [(retried.reason,)]
    assert retried.reason != "of an older version"


def test_one_that_its_sender_repeated_meanwhile_is_not_recorded_twice(
    on: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = begin(on)
    said = message(session_id)
    refuse_to_decide(monkeypatch)
    on.take(said)
    monkeypatch.undo()
    recorded = on.say(said)
    rows = on.types(session_id)
    assert outcome(retry(on)) == recorded
    assert on.types(session_id) == rows
    assert on.parked() == []


def test_what_no_longer_fits_is_refused(on: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its turn ended when it was parked, so the answer comes too late."""
    session_id = begin(on)
    said, _ = on.running(session_id)
    refuse_to_decide(monkeypatch)
    on.take(completed(session_id, str(said.turn_id)))
    monkeypatch.undo()
    assert on.types(session_id)[-1] == "answer_failed"
    assert outcome(retry(on)).code == "turn_finished"
    assert on.types(session_id)[-1] == "answer_failed"
    assert on.parked() == []


def test_a_claim_has_no_outcome_and_starts_nothing(on: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = begin(on)
    said = message(session_id)
    on.take(said)
    refuse_to_decide(monkeypatch)
    on.take(claim(session_id, str(said.turn_id), new_id()))
    monkeypatch.undo()
    assert retry(on) == Retried(None, None)
    assert on.types(session_id)[-1] == "answer_failed", "the turn ended when its claim was parked"
    assert [word.type for word in on.words()] == ["stop"]
    assert len(on.of(TellWorkers)) == 1


def test_a_retry_that_the_disk_fails_leaves_it_parked(on: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    session_id = begin(on)
    said = message(session_id)
    refuse_to_decide(monkeypatch)
    on.take(said)
    monkeypatch.undo()

    def broken(*_: Any) -> Any:
        raise LogError("disk")

    monkeypatch.setattr(SqliteTransaction, "append", broken)
    with pytest.raises(LogError):
        retry(on)
    monkeypatch.undo()
    on.reopen()
    assert len(on.parked()) == 1
    assert outcome(retry(on)).code is None


def test_what_is_discarded_is_gone_and_its_number_is_not_used_again(on: Scene) -> None:
    session_id = begin(on)
    said = message(session_id)
    on.take(replace(delivered(said), body=b"{}"))
    assert on.recorder.discard_parked(1)
    assert not on.recorder.discard_parked(1)
    assert retry(on) is None
    found = on.outcome_in_log(USER, said.event_id)
    assert found is not None
    assert found.code == "event_parked", "who asks is still told"
    on.take(replace(delivered(message(session_id)), body=b"{}"))
    assert on.sql("SELECT parked_id FROM parked") == [(2,)]
