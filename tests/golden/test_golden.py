"""What was written once must be read for ever: golden bytes of every event, derived ids, hashes and the chain.

A golden file is never changed: a new shape gets a new schema_version and a new file beside the old one.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from contracts import events, ids, upcasters
from contracts.base import data_hash
from contracts.envelope import read_event, write_event
from services.history.log.port import FIRST_HASH, Stored, chain_hash

FOLDER = Path(__file__).parent
EVENTS = sorted((FOLDER / "events").glob("*.json"))
GOLDEN_IDS: dict[str, Any] = json.loads((FOLDER / "ids.json").read_text())


def body_of(name: str) -> bytes:
    return (FOLDER / "events" / f"{name}.json").read_bytes().rstrip(b"\n")


def test_every_version_of_every_type_has_a_golden_file() -> None:
    versions = {f"{name}.{version}" for name in events.REGISTRY for version in upcasters.versions_of(name)}
    assert {path.stem for path in EVENTS} == versions


@pytest.mark.parametrize("name", [path.stem for path in EVENTS])
def test_an_event_that_was_ever_written_is_read(name: str) -> None:
    event = read_event(body_of(name))
    assert event.body == body_of(name)
    assert isinstance(event.data, events.shape_of(event.type))


@pytest.mark.parametrize("name", [f"{name}.{version}" for name, (version, _) in events.REGISTRY.items()])
def test_today_s_writer_gives_the_golden_bytes(name: str) -> None:
    assert write_event(read_event(body_of(name)).envelope).body == body_of(name)


@pytest.mark.parametrize("name", [name for name, value in GOLDEN_IDS.items() if isinstance(value, dict)])
def test_a_derived_id_never_changes(name: str) -> None:
    golden = GOLDEN_IDS[name]
    assert getattr(ids, name)(*golden["args"]) == golden["value"]


def test_the_recipe_of_derived_ids_is_the_documented_one() -> None:
    """UUIDv5 over the namespace and the compact JSON array of a kind and its parts."""
    namespace = uuid.UUID(GOLDEN_IDS["namespace"])
    assert ids.turn_id_of("x") == str(uuid.uuid5(namespace, '["turn","x"]'))


def test_a_name_is_compared_in_nfc() -> None:
    assert ids.session_id_of_name("local", "A\u030angstro\u0308m") == GOLDEN_IDS["session_id_of_name"]["value"]


@pytest.mark.parametrize("golden", GOLDEN_IDS["data_hash"], ids=lambda golden: golden["data"])
def test_a_data_hash_never_changes(golden: dict[str, str]) -> None:
    assert data_hash(json.loads(golden["data"])) == golden["value"]


def test_absent_null_and_another_number_are_other_data() -> None:
    values = [golden["value"] for golden in GOLDEN_IDS["data_hash"]]
    assert len(set(values)) == len(values)


def test_the_chain_of_three_rows_never_changes() -> None:
    """Rows with a turn_id and without one; each hash covers the one before."""
    previous = FIRST_HASH
    for position, row in enumerate(json.loads((FOLDER / "chain.json").read_text()), 1):
        body = body_of(row["event"])
        event = read_event(body)
        assert event.data_hash == row["data_hash"]
        assert hashlib.sha256(body).hexdigest() == row["body_hash"]
        stored = Stored(position, position, "2026-11-20T10:00:00.200Z", event)
        previous = chain_hash(previous, stored, event.data_hash, hashlib.sha256(body).digest())
        assert previous.hex() == row["hash"]
