"""The quick way to read an event takes nothing that the careful one refuses, and reads the same.

Owns the comparison, over every golden event and over what single bytes make of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts import envelope
from contracts.envelope import Event, read_event
from contracts.errors import ContractError
from tests.spoiling import GOLDEN, body_of, other_values, spoiled


def both(body: bytes) -> tuple[Event | None, Event | None]:
    """As read_event reads it, and as the careful way alone does."""
    return tried(read_event, body), tried(envelope._read_with_care, body)


def tried(read: object, body: bytes) -> Event | None:
    try:
        assert callable(read)
        found: Event = read(body)
    except ContractError:
        return None
    return found


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_both_ways_read_the_same(path: Path) -> None:
    quick, careful = both(body_of(path))
    assert quick is not None
    assert careful is not None
    assert (quick, quick.envelope, quick.data_hash) == (careful, careful.envelope, careful.data_hash)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_what_one_refuses_the_other_does_not_take(path: Path) -> None:
    for body in spoiled(path):
        quick, careful = both(body)
        assert quick == careful, body


def test_a_value_in_a_field_s_place_is_judged_alike() -> None:
    for path in GOLDEN:
        for body in other_values(path):
            quick, careful = both(body)
            assert quick == careful, body
