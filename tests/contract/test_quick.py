"""The quick way to read an event takes nothing that the careful one refuses, and reads the same.

Owns the comparison, over every golden event and over what single bytes make of them.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from contracts import envelope
from contracts.envelope import Event, read_event
from contracts.errors import ContractError

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
    b'"2026-02-29T10:00:00.000Z"',
)


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
    body = path.read_bytes().strip()
    quick, careful = both(body)
    assert quick is not None
    assert careful is not None
    assert (quick, quick.envelope, quick.data_hash) == (careful, careful.envelope, careful.data_hash)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_what_one_refuses_the_other_does_not_take(path: Path) -> None:
    body, random = path.read_bytes().strip(), Random(path.stem)
    for _ in range(SPOILED):
        at = random.randrange(len(body))
        put = random.choice((bytes([random.randrange(256)]), b"", random.choice(TOKENS)))
        spoiled = body[:at] + put + body[at + random.randrange(1, 6) :]
        quick, careful = both(spoiled)
        assert quick == careful, spoiled


def test_a_value_in_a_field_s_place_is_judged_alike() -> None:
    """Each value of each field, replaced by what JSON has beside it."""
    for path in GOLDEN:
        body = path.read_bytes().strip()
        for piece in body.split(b":")[1:]:
            value = piece.split(b",")[0].rstrip(b"}]")
            for token in TOKENS:
                spoiled = body.replace(b":" + value, b":" + token, 1)
                quick, careful = both(spoiled)
                assert quick == careful, spoiled
