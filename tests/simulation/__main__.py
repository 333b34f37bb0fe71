"""`make simulate EXAMPLES=5000`: fresh simulated schedules, as many as asked for."""

from __future__ import annotations

import sys
import time

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.machine import SETTINGS, Core


def main(examples: int) -> None:
    began = time.monotonic()
    run_state_machine_as_test(Core, settings=settings(SETTINGS, max_examples=examples))
    sys.stdout.write(f"{examples} simulated schedules in {time.monotonic() - began:.0f} s kept every promise\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
