"""Off the road, history/tools (core): what verify says: what it looked at, and what it found wrong, first things first.

Owns the order and the bound of what is told. Must never hold a text: a finding names positions, ids and columns.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

# A damaged page makes a hundred findings, a lost file a million: the first ones say what happened.
MOST_TOLD = 100


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Something that is not as it must be. position 0: what is wrong has no place in the log."""

    position: int
    what: str


@dataclass
class Findings:
    """The first findings by position, and how many there are."""

    count: int = 0
    _kept: list[Finding] = field(default_factory=list)

    def add(self, position: int, what: str) -> None:
        found = Finding(position, what)
        if len(self._kept) < MOST_TOLD or _place(found) < _place(self._kept[-1]):
            self.take(1, [found])
        else:
            self.count += 1

    def take(self, count: int, findings: Iterable[Finding]) -> None:
        """Those of another process: how many it has, and the first of them."""
        self.count += count
        self._kept = heapq.nsmallest(MOST_TOLD, {*self._kept, *findings}, key=_place)

    def told(self) -> list[Finding]:
        """The first ones, in the order of the log; what has no position comes last."""
        return list(self._kept)


def _place(finding: Finding) -> tuple[bool, Finding]:
    return finding.position == 0, finding
