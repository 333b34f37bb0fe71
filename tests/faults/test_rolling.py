"""A rolling restart under load: SIGTERM to every process in turn, and no client is worse off than for a moment."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.checker import check
from tests.faults.clients import Crowd
from tests.faults.run import run

SEED = 1


@pytest.mark.timeout(600)
async def test_a_rolling_restart_fails_no_turn_and_loses_no_frame(tmp_path: Path) -> None:
    """Each client comes back by itself: those who watch have seen all, those who write know each outcome."""
    exits: dict[str, int | None] = {}

    async def restart_each(crowd: Crowd) -> None:
        for part in crowd.stack.parts.values():
            async with part.held:
                exits[part.name] = await part.stop()
                part.spawn()
            await crowd.stack.ready()
        assert not crowd.stack.ended_by_themselves, "the others stayed up meanwhile"

    evidence = await run(tmp_path, random.Random(SEED), restart_each)
    violations = [str(each) for each in check(evidence)]
    assert not violations, f"See {tmp_path}: {violations}"
    ends = Counter(row.type for row in evidence.rows)
    assert ends["answer_completed"] > 0
    failures = [row.event["data"]["code"] for row in evidence.rows if row.type == "answer_failed"]
    assert not failures
    services = {name: code for name, code in exits.items() if not name.startswith(("nats", "standin"))}
    assert set(services.values()) == {0}, f"each service ends as it was told to: {services}"
