"""What `chatlog backup` and `chatlog restore` do, in order.

Owns the order of a restore: everything that may refuse it comes before the first change. The copies and the swap are
history's tools, the questions to the broker intake's. Must never restore beside a history that runs.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import Progress as Bar

from services.history.tools import backup as tool
from services.history.tools import restore as swap
from services.operator import intake
from services.operator.folder import DataFolder
from services.operator.settings import OperatorSettings


def back_up(folder: DataFolder, file: Path, *, force: bool) -> str:
    """What was made, in a line. Raises BackupRefused or OSError."""
    with _shown("copying the log") as progress:
        made = tool.back_up(folder.root / swap.LOG, file, progress, force=force)
    return f"{file}: the log up to position {made.position}, {file.stat().st_size} bytes, made at {made.made_at}"


def restore(settings: OperatorSettings, folder: DataFolder, file: Path, *, accept_gap: bool) -> Iterator[str]:
    """What is done, a line each. Raises BackupRefused, RestoreRefused, FolderInUse, CannotStart or OSError."""
    folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = folder.take_lock()
    try:
        with swap.writing_alone(folder.root):
            yield from _restore(settings, folder, file, accept_gap)
    finally:
        os.close(lock)


@contextmanager
def refused_in_a_line() -> Iterator[None]:
    try:
        yield
    except (tool.BackupRefused, swap.RestoreRefused) as error:
        typer.echo(f"chatlog: {error}", err=True)
        raise typer.Exit(1) from error


def _restore(settings: OperatorSettings, folder: DataFolder, file: Path, accept_gap: bool) -> Iterator[str]:
    found = tool.read_backup(file)
    going_on = swap.continuation(found, asyncio.run(intake.told(settings, folder)), folder.root)
    if going_on.gap and not accept_gap:
        raise swap.RestoreRefused(f"{going_on.gap}; --accept-gap goes on without it")
    if going_on.gap:
        yield f"gap accepted: {going_on.gap}"
    with _shown("copying the backup") as progress, swap.prepared(folder.root, going_on, progress) as new:
        # Before the swap: a history that meets another log's contexts would take them for its own.
        asyncio.run(intake.drop_contexts(settings, folder))
        kept = swap.put_in_place(new, folder.root, found.note())
    yield f"the log is that of {file}: up to position {found.position}, made at {found.made_at}"
    if kept:
        yield f"the log that was here is kept as {kept}"
    yield "the next start catches up from the intake, and clients begin again; `chatlog verify` reads every row"


@contextmanager
def _shown(what: str) -> Iterator[tool.Progress]:
    """A bar, where somebody looks."""
    with Bar(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
