"""Beside `chatlog rerun`: a recorded answer and a new one, side by side.

Owns what counts as equal, and where the two begin to differ. Must never ask anything: it is given both.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Comparison:
    """differs_at: the first character of the text that differs, None where none does. lines: a unified diff."""

    equal: bool
    differs_at: int | None
    lines: tuple[str, ...]


def compare(recorded: tuple[str, str], again: tuple[str, str]) -> Comparison:
    """Two answers, each (thinking, text). They are equal if they say the same, thinking too."""
    before, after = recorded[1], again[1]
    diff = difflib.unified_diff(before.splitlines(), after.splitlines(), "recorded", "again", lineterm="", n=1)
    return Comparison(
        equal=recorded == again,
        differs_at=None if before == after else _first_difference(before, after),
        lines=tuple(diff),
    )


def _first_difference(before: str, after: str) -> int:
    """Where one is the beginning of the other: its length."""
    pairs = enumerate(zip(before, after, strict=False))
    return next((number for number, (one, other) in pairs if one != other), min(len(before), len(after)))
