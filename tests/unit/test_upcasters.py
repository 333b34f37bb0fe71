"""Old shapes are read, and nothing of theirs changes: a log that version 1 of context_assembled wrote goes on."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from contracts import events, upcasters
from contracts.base import compact, data_hash, parse
from contracts.envelope import read_event
from contracts.errors import ContractError
from contracts.events import ContextAssembled, LeftOut
from contracts.turns import QueuedContext, read_context
from services.history.effects import Queue
from services.history.log.port import FIRST_HASH, LogUnreadable, chain_hash
from services.history.log.sqlite import SqliteLog
from services.history.tools.verify import verify
from tests.conversing import USER, completed, message
from tests.recording import DIGEST, NOW, Scene, only, scene

GOLDEN = Path(__file__).parents[1] / "golden"
# Written by the release before schema_version 2: a finished turn, one with a long answer, a failed one, one that runs.
OLD: dict[str, Any] = json.loads((GOLDEN / "logs/contexts_1.json").read_text())
OLD_BODY = parse((GOLDEN / "events/context_assembled.1.json").read_bytes())


def old_with(**changes: Any) -> bytes:
    """A context_assembled of version 1 with other data; ... takes a field out."""
    changed = {name: value for name, value in {**OLD_BODY["data"], **changes}.items() if value is not ...}
    return compact({**OLD_BODY, "data": changed})


@pytest.mark.parametrize(("count", "left_out"), [(0, LeftOut()), (7, LeftOut(unexplained=7))])
def test_a_bare_count_is_taken_for_what_it_says(count: int, left_out: LeftOut) -> None:
    context = read_event(old_with(left_out=count)).data
    assert isinstance(context, ContextAssembled)
    assert (context.left_out, context.digest) == (left_out, None)


@pytest.mark.parametrize("wrong", [{"left_out": {}}, {"left_out": -1}, {"left_out": ...}, {"seed": None}])
def test_old_data_must_be_what_its_own_version_allowed(wrong: dict[str, Any]) -> None:
    with pytest.raises(ContractError) as caught:
        read_event(old_with(**wrong))
    assert caught.value.code == "event_parked"


def test_from_each_version_there_is_a_way_to_the_next() -> None:
    for name, (newest, _) in events.REGISTRY.items():
        assert upcasters.versions_of(name) == list(range(1, newest + 1))


def test_a_context_of_a_later_version_is_not_guessed_at() -> None:
    """A worker that is older than history leaves it in the queue, for one that can read it."""
    body = compact({**OLD_BODY, "schema_version": events.schema_version_of("context_assembled") + 1})
    with pytest.raises(ContractError):
        read_context(b'{"event":%b,"messages":[]}' % body)


def write_old(folder: Path) -> None:
    SqliteLog(folder / "log.db", "e" * 32, NOW).close()
    with closing(sqlite3.connect(folder / "log.db")) as connection, connection:
        for row in OLD["events"]:
            raw = {"body": row["body"].encode(), **{name: bytes.fromhex(row[name]) for name in ("body_hash", "hash")}}
            names = ", ".join(row)
            connection.execute(f"INSERT INTO events ({names}) VALUES (:{', :'.join(row)})", {**row, **raw})


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Scene]:
    """Today's recorder on that log."""
    write_old(tmp_path)
    with scene(tmp_path) as made:
        yield made


def test_a_log_of_a_later_version_ends_history_and_its_position_is_named(tmp_path: Path) -> None:
    """Rather than fold a session without what it cannot read."""
    write_old(tmp_path)
    with closing(sqlite3.connect(tmp_path / "log.db")) as connection, connection:
        later = "CAST(replace(body, '\"schema_version\":1', '\"schema_version\":3') AS BLOB)"
        connection.execute(f"UPDATE events SET body = {later} WHERE position = 3")
    with pytest.raises(LogUnreadable, match="position 3"):
        Scene(tmp_path)


def rendered_hash_of(context: QueuedContext) -> str:
    return data_hash([{"role": role, "content": content} for role, content in context.messages])


def test_an_old_log_replays_byte_for_byte(old: Scene) -> None:
    """Its chain, and the message in the queue of the turn that ran when history was replaced."""
    previous = FIRST_HASH
    for stored, row in zip(old.rows(USER, OLD["events"][0]["session_id"]), OLD["events"], strict=True):
        assert stored.event.body.decode() == row["body"]
        previous = chain_hash(previous, stored, stored.event.data_hash, bytes.fromhex(row["body_hash"]))
        assert previous.hex() == row["hash"]
    [queued] = old.requeue()
    assert queued.payload.decode() == OLD["queued"]
    context = read_context(queued.payload)
    assert context.data.left_out == LeftOut(unexplained=4)
    assert rendered_hash_of(context) == context.data.rendered_hash


def test_an_old_log_goes_on_in_the_new_version(old: Scene) -> None:
    """And with both in it, everything holds that verify asks."""
    [running] = old.recorder.open_turns()
    old.take(completed(running.session_id, running.turn_id, text="sieben"))
    old.take(message(running.session_id, "acht"))
    queued = only(old.of(Queue))
    context = read_context(queued.payload)
    assert context.event.envelope.schema_version == 2
    assert (context.data.digest, context.data.left_out) == (DIGEST, LeftOut(budget=4, failed=1))
    assert rendered_hash_of(context) == context.data.rendered_hash
    old.reopen()
    assert old.requeue() == [queued]
    assert verify(old.folder, lambda done, of: None, processes=1).findings == ()
