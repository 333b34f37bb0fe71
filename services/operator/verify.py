"""`chatlog verify`: what is typed, what is shown while it runs, and what is said of what it found.

Owns the exit code: 0 only where everything holds. The checks are history's (services/history/tools/verify.py), imported
when they are asked for: every other command starts without them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.operator.settings import load_all, parse_flags

if TYPE_CHECKING:
    from services.history.tools.verify import Report

Views = Annotated[bool, typer.Option("--views", help="Compare the serving views with a fold of the log, too.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]


def verify(context: typer.Context, views: Views = False, as_json: AsJson = False) -> None:
    """Check the log, row by row and page by page, while the stack runs or not. It changes nothing."""
    from services.history.tools.verify import VerifyFailed
    from services.history.tools.verify import verify as check

    folder = load_all(parse_flags(context.args)).operator.data_dir.absolute()
    try:
        with _progress(shown=sys.stderr.isatty() and not as_json) as told:
            report = check(folder, told, views=views)
    except VerifyFailed as error:
        sys.stderr.write(f"chatlog: {error}\n")
        sys.exit(1)
    if as_json:
        typer.echo(json.dumps(values(report)))
    else:
        for line in lines(report):
            typer.echo(line)
    sys.exit(0 if report.holds else 1)


def values(report: Report) -> dict[str, Any]:
    """The report for programs. first_bad_position null: all holds, or what does not has no place in the log."""
    positions = [found.position for found in report.findings if found.position]
    return {
        "holds": report.holds,
        "first_bad_position": min(positions, default=None),
        "position": report.position,
        "hash": report.hash,
        "head_kept_by": list(report.kept),
        "seconds": round(report.seconds, 3),
        "count": report.count,
        "findings": [{"position": found.position or None, "what": found.what} for found in report.findings],
    }


def lines(report: Report) -> Iterator[str]:
    """The report for a person, the first bad position first."""
    for found in report.findings:
        yield f"position {found.position}: {found.what}" if found.position else f"the file: {found.what}"
    if report.count > len(report.findings):
        yield f"and {report.count - len(report.findings)} more"
    rate = round(report.position / max(report.seconds, 0.001))
    yield f"{report.position} events in {report.seconds:.1f} s, {rate} events/s; head {report.hash}"
    if report.kept:
        yield f"the head is also kept by {', '.join(report.kept)}"
    else:
        yield "nothing else keeps a head of this log: a newest part that is cut off cleanly would not be missed"
    yield "everything holds" if report.holds else f"{report.count} found: the log is not what was written"


@contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    # Without a thread of its own: verify forks.
    columns = (BarColumn(), MofNCompleteColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress("events", *columns, console=console, auto_refresh=False, transient=True, disable=not shown) as bar:
        task = bar.add_task("verify")

        def told(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of, refresh=True)

        yield told
