"""Golden events, and bodies that are nearly one of them: what every way of reading must judge alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

GOLDEN = sorted((Path(__file__).parent / "golden/events").glob("*.json"))
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
    b"2026-02-29T10:00:00.000Z",
)


def body_of(path: Path) -> bytes:
    return path.read_bytes().strip()


def spoiled(path: Path) -> Iterator[bytes]:
    """With a byte, or a few, in another's place: the same ones each time."""
    body, random = body_of(path), Random(path.stem)
    for _ in range(SPOILED):
        at = random.randrange(len(body))
        put = random.choice((bytes([random.randrange(256)]), b"", random.choice(TOKENS)))
        yield body[:at] + put + body[at + random.randrange(1, 6) :]


def other_values(path: Path) -> Iterator[bytes]:
    """With each value of each field replaced by what JSON has beside it."""
    body = body_of(path)
    for piece in body.split(b":")[1:]:
        value = piece.split(b",")[0].rstrip(b"}]")
        for token in TOKENS:
            yield body.replace(b":" + value, b":" + token, 1)
