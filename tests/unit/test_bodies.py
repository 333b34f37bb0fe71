"""Stored bodies are taken apart only where they say their columns, and their data is read as read_event reads it.

Owns the comparison, over every golden event and over what others make of it.
"""

from __future__ import annotations

from contracts.envelope import Envelope, read_event
from contracts.errors import ContractError
from services.history.log.bodies import Columns, Parts, read_data, take_apart
from tests.spoiling import GOLDEN, body_of, other_values, spoiled


def columns_of(of: Envelope) -> Columns:
    turn = of.turn_id.encode() if of.turn_id else None
    ids = (of.event_id.encode(), of.user_id.encode(), of.session_id.encode())
    return (*ids, turn, of.type.encode(), of.schema_version)


def read_of(parts: Parts | None, columns: Columns) -> object:
    return read_data(columns[4], columns[5], parts[1]) if parts else None


def test_what_is_read_quickly_is_what_the_long_way_reads() -> None:
    """Of bodies with a byte, or a few, in another's place: none is taken that read_event refuses."""
    for path in GOLDEN:
        columns = columns_of(read_event(body_of(path)).envelope)
        for body in spoiled(path):
            data = read_of(take_apart(body, columns), columns)
            if data is not None:
                assert data == read_event(body).envelope.data, body


def test_a_value_in_a_field_s_place_is_judged_alike() -> None:
    for path in GOLDEN:
        columns = columns_of(read_event(body_of(path)).envelope)
        for body in other_values(path):
            if read_of(take_apart(body, columns), columns) is not None:
                read_event(body)


def test_a_day_that_is_none_is_not_taken() -> None:
    path = next(each for each in GOLDEN if each.stem.startswith("session_renamed"))
    body = body_of(path)
    columns = columns_of(read_event(body).envelope)
    at = body.index(b'"occurred_at":"') + len(b'"occurred_at":"')
    no_day = body[:at] + b"2026-02-29" + body[at + 10 :]
    try:
        read_event(no_day)
    except ContractError:
        assert take_apart(no_day, columns) is None
    else:
        raise AssertionError("2026 has no such day")


def test_a_body_is_taken_apart_only_where_it_says_its_columns() -> None:
    for path in GOLDEN:
        body = body_of(path)
        of = read_event(body).envelope
        columns = columns_of(of)
        parts = take_apart(body, columns)
        assert parts is not None, path
        assert parts[0] == (of.causation_id.encode() if of.causation_id else None)
        for number in range(6):
            other = [*columns]
            other[number] = 77 if number == 5 else b"other"
            assert take_apart(body, tuple(other)) is None, (path, number)  # type: ignore[arg-type]
        data = read_data(columns[4], columns[5], parts[1])
        assert data is None or data == of.data, path
