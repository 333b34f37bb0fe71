"""`chatlog replay` that kills itself at one exact point: python -m tests.dying_replay POINT POSITION.

Owns the points: in the first batch that begins at the position or after it, and between the steps after the last one.
It folds small batches, and says where each begins. It changes nothing else of what the command does up to there.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from services.history.tools import replay as tool
from services.history.views import filling
from services.history.views.batch import Batch
from services.history.views.tables import VIEWS, View, ViewTables
from services.operator import cli, replay

BATCH_EVENTS = 7
IN_A_BATCH = ("_move_checkpoint", "_put", "_add_words", "committed")
AFTER_THE_LAST = {"compare": tool, "_swap": replay}


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(point: str, position: int) -> None:
    write = ViewTables.write

    def write_and_die(self: ViewTables, batch: Batch, only: frozenset[View] = VIEWS) -> None:
        sys.stdout.write(f"{batch.after}\n")
        sys.stdout.flush()
        here = point in IN_A_BATCH and batch.after >= position
        if here and point != "committed":
            setattr(ViewTables, point, die)
        write(self, batch, only)
        if here:
            die()

    filling.BATCH_EVENTS = BATCH_EVENTS
    ViewTables.write = write_and_die  # type: ignore[method-assign]
    if point in AFTER_THE_LAST:
        setattr(AFTER_THE_LAST[point], point, die)
    sys.argv[:] = ["chatlog", "replay"]
    cli.main()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
