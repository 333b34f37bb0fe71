"""A leash: becomes another program, which is told to end when the process that started it dies.

Owns one promise: a killed supervisor leaves no orphan. Run by file path with the standard library alone, so that it
costs 20 ms. Must never outlive its own exec. The kernel's signal on a parent's death is Linux's; elsewhere the program
runs without a leash.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
# The supervisor sets this to its own id before it becomes itself; a child whose parent is another one is an orphan.
PARENT_VARIABLE = "CHATLOG_SUPERVISOR_PID"


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
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
