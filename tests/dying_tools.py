"""A backup and a restore that end at each of their steps: python -m tests.dying_tools TEMPLATE WORK HOW.

Owns the steps: each is a write that another process, or the next start, may find. TEMPLATE is copied for each run into
a folder beside it, named by the step's number; HOW is `killed` there, or `failing`: the disk says no. The last run ends
by itself. Must never change what a step does.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.history.tools import backup, restore

STEPS = ("fsync", "link", "rename", "replace")
# A log of a test is copied in several steps too.
PAGES = 4
TOLD = b'{"created": "2026-11-20T00:00:00Z", "state": {"first_seq": 1, "last_seq": 1000, "bytes": 1}}'


def back_up(folder: Path, step: Callable[[], None]) -> None:
    backup.back_up(folder / "data/log.db", folder / "new.db", lambda done, total: step(), force=True)


def put_back(folder: Path, step: Callable[[], None]) -> None:
    """What `chatlog restore` does once the broker has been asked."""
    found = backup.read_backup(folder / "old.db")
    data = folder / "data"
    with (
        restore.writing_alone(data),
        restore.prepared(data, restore.continuation(found, TOLD, data), lambda done, total: step()) as new,
    ):
        restore.put_in_place(new, data, found.note())


WORKS = {work.__name__: work for work in (back_up, put_back)}


def end_at(number: int, how: str) -> Callable[[], None]:
    """What each step calls before it is done."""
    steps = itertools.count(1)

    def step() -> None:
        if next(steps) != number:
            return
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.EIO, "the disk says no")

    def before(done: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*arguments: Any, **named: Any) -> Any:
            step()
            return done(*arguments, **named)

        return stepping

    for name in STEPS:
        setattr(os, name, before(getattr(os, name)))
    return step


def main(template: Path, work: str, how: str) -> None:
    backup._STEP_PAGES = PAGES
    for number in itertools.count(1):
        folder = template.with_name(f"{work}-{how}-{number}")
        shutil.copytree(template, folder)
        child = os.fork()
        if child == 0:
            try:
                WORKS[work](folder, end_at(number, how))
            except OSError:
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
