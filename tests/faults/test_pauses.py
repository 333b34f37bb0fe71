"""The pause that a watcher sees is the longest gap between frames that show progress, of whoever waited longest."""

from __future__ import annotations

import json
from typing import Any

from tests.faults.pauses import Gaps, percentile


def shown(watch: str, at: float, kind: str = "token") -> dict[str, Any]:
    return {"kind": "frame", "watch": watch, "at": at, "raw": json.dumps({"type": kind})}


def test_the_longest_gap_of_any_watcher_counts() -> None:
    gaps = Gaps(["a", "b"])
    gaps.take([shown("a", at) for at in (1.0, 2.0, 5.0, 6.0)] + [shown("b", at) for at in (1.0, 3.5, 5.5, 6.0)])
    assert gaps.longest(since=2.0) == 3.0
    assert gaps.longest(since=5.2) == 2.0, "what was over before does not count"
    gaps.take([shown("a", 8.0, "attached"), {"kind": "closed", "watch": "a", "at": 8.5, "how": "cut"}])
    assert gaps.longest(since=5.8) == 1.0, "to be attached is no progress, and what goes on is not over"


def test_a_watcher_streams_once_it_is_shown_a_token() -> None:
    gaps = Gaps(["a", "b"])
    gaps.take([shown("a", 2.0), shown("b", 1.0), shown("b", 3.0, "event")])
    assert gaps.streams_since() == 1.0


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(each) for each in range(50, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.95), percentile([4.0], 0.95)) == (25.0, 48.0, 4.0)
