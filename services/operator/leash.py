"""A leash: becomes another program, which is told to end when the process that started it dies.

Owns two promises: a killed supervisor leaves no orphan, and a program that ends again and again is not started without
a pause. Run by file path with the standard library alone, so that it costs 20 ms. Must never outlive its own exec. The
kernel's signal on a parent's death is Linux's; elsewhere the program runs without a leash.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
# The supervisor sets this to its own id before it becomes itself; a child whose parent is another one is an orphan.
PARENT_VARIABLE = "CHATLOG_SUPERVISOR_PID"
# The file in which a program's leashes tell each other when it was started; without it there is no pause.
STARTS_VARIABLE = "CHATLOG_STARTS_FILE"
# Who ran this long is not ending again and again.
_SOON_S = 10.0
# The first restart is at once: whoever is killed is missed. The next ones wait, each twice as long as the one before.
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_DOUBLINGS = 5


def main() -> None:
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        expected = int(os.environ.get(PARENT_VARIABLE, parent))
        if os.getppid() != expected:
            # The parent died before the kernel knew that we want to be told.
            sys.exit("the supervisor is gone")
    if "--supervisor" in sys.argv[1:2]:
        os.environ[PARENT_VARIABLE] = str(os.getpid())
        del sys.argv[1]
    if starts := os.environ.pop(STARTS_VARIABLE, ""):
        _pace(starts, parent)
    os.execv(sys.argv[1], sys.argv[1:])


def _pace(file: str, supervisor: int) -> None:
    """Wait as long as the starts so far ask for, and keep this one."""
    with open(file, "a+", encoding="ascii") as kept:
        kept.seek(0)
        restarts = soon(kept.read(), supervisor, time.monotonic())
        time.sleep(pause_s(restarts))
        kept.truncate(0)
        kept.write(f"{supervisor} {restarts} {time.monotonic()}")


def soon(kept: str, supervisor: int, now: float) -> int:
    """How many starts in a row, this one included, came soon after another by this supervisor."""
    try:
        parent, restarts, started = kept.split()
        again = int(parent) == supervisor and now - float(started) < _SOON_S
        return int(restarts) + 1 if again else 0
    except ValueError:  # none is kept, or half a one
        return 0


def pause_s(restarts: int) -> float:
    if restarts < 2:  # a first start, or a first restart
        return 0.0
    return min(_FIRST_PAUSE_S * 2.0 ** min(restarts - 2, _DOUBLINGS), _LONGEST_PAUSE_S)


if __name__ == "__main__":
    main()
