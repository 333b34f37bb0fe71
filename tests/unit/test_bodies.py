"""Stored bodies are taken apart only where they say their columns, and their data is read as read_event reads it.

Owns the comparison, over every golden event and over what others make of it.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from contracts.envelope import Envelope, read_event
from contracts.errors import ContractError
from services.history.log.bodies import Columns, Parts, read_data, take_apart

GOLDEN = sorted((Path(__file__).parents[1] / "golden/events").glob("*.json"))
SPOILED = 300
TOKENS = (
    b"null",
    b"1e999",
    b'"\\ud800"',
    b"NaN",
    b"[" * 40 + b"]" * 40,
    b"{}",
    b'"x"',
    b"-1",
    b"2026-02-29T10:00:00.000Z",
)


def columns_of(of: Envelope) -> Columns:
    turn = of.turn_id.encode() if of.turn_id else None
    ids = (of.event_id.encode(), of.user_id.encode(), of.session_id.encode())
    return (*ids, turn, of.type.encode(), of.schema_version)


def read_of(parts: Parts | None, columns: Columns) -> object:
    return read_data(columns[4], columns[5], parts[1]) if parts else None


def test_what_is_read_quickly_is_what_the_long_way_reads() -> None:
    """Of bodies with a byte, or a few, in another's place: none is taken that read_event refuses."""
    for path in GOLDEN:
        body, random = path.read_bytes().strip(), Random(path.stem)
        columns = columns_of(read_event(body).envelope)
        for _ in range(SPOILED):
            at = random.randrange(len(body))
            put = random.choice((bytes([random.randrange(256)]), b"", random.choice(TOKENS)))
            spoiled = body[:at] + put + body[at + random.randrange(1, 6) :]
            data = read_of(take_apart(spoiled, columns), columns)
            if data is not None:
                assert data == read_event(spoiled).envelope.data, spoiled


def test_a_value_in_a_field_s_place_is_judged_alike() -> None:
    for path in GOLDEN:
        body = path.read_bytes().strip()
        columns = columns_of(read_event(body).envelope)
        for piece in body.split(b":")[1:]:
            value = piece.split(b",")[0].rstrip(b"}]")
            for token in TOKENS:
                spoiled = body.replace(b":" + value, b":" + token, 1)
                if read_of(take_apart(spoiled, columns), columns) is not None:
                    read_event(spoiled)


def test_a_day_that_is_none_is_not_taken() -> None:
    path = next(each for each in GOLDEN if each.stem.startswith("session_renamed"))
    body = path.read_bytes().strip()
    columns = columns_of(read_event(body).envelope)
    at = body.index(b'"occurred_at":"') + len(b'"occurred_at":"')
    spoiled = body[:at] + b"2026-02-29" + body[at + 10 :]
    try:
        read_event(spoiled)
    except ContractError:
        assert take_apart(spoiled, columns) is None
    else:
        raise AssertionError("2026 has no such day")


def test_a_body_is_taken_apart_only_where_it_says_its_columns() -> None:
    for path in GOLDEN:
        body = path.read_bytes().strip()
        event = read_event(body)
        of = event.envelope
        turn = of.turn_id.encode() if of.turn_id else None
        columns = (of.event_id.encode(), of.user_id.encode(), of.session_id.encode(), turn, of.type.encode(),
                   of.schema_version)  # fmt: skip
        parts = take_apart(body, columns)
        assert parts is not None, path
        assert parts[0] == (of.causation_id.encode() if of.causation_id else None)
        for number in range(6):
            other = [*columns]
            other[number] = 77 if number == 5 else b"other"
            assert take_apart(body, tuple(other)) is None, (path, number)  # type: ignore[arg-type]
        data = read_data(columns[4], columns[5], parts[1])
        assert data is None or data == of.data, path
