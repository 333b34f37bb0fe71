"""The core keeps the promises P1, P2, P4 to P6 in a few dozen simulated schedules: most always the same, some fresh.

`make simulate EXAMPLES=5000` runs more of them. A failing one is printed as a program of rules, each a call of the
machine: kept in test_schedules.py it is a regression test.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.machine import SETTINGS, Core


def test_the_same_schedules_as_always() -> None:
    run_state_machine_as_test(Core, settings=settings(SETTINGS, max_examples=25, derandomize=True))


def test_fresh_schedules() -> None:
    run_state_machine_as_test(Core, settings=settings(SETTINGS, max_examples=10))
