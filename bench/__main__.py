"""Beside the road: every figure, one after the other: `make bench`, some nine minutes.

Owns their order. Must never run two at once: they share the machine's cores.
"""

from __future__ import annotations

import sys

from bench import idle, relay, scale, sockets, turns
from bench.figures import run
from bench.stack import NotMeasured


def main() -> int:
    missing = 0
    for each in (idle, turns, scale, relay, sockets):
        try:
            run(each.measure).tell()
        except (NotMeasured, RuntimeError, TimeoutError) as error:
            sys.stderr.write(f"{each.__name__} was not measured: {type(error).__name__} {error}\n")
            missing += 1
    return min(missing, 1)


if __name__ == "__main__":
    sys.exit(main())
