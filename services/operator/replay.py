"""`chatlog replay`: what is typed, what is shown while it runs, and what is said of what it found.

Owns the exit code, and the order: rebuild, compare, swap. The rebuild is history's (services/history/tools/replay.py),
imported when it is asked for: every other command starts without it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from services.operator.running import AskFailed, on_history
from services.operator.settings import load_all, parse_flags

if TYPE_CHECKING:
    from services.history.tools.compare import Comparison
    from services.history.tools.replay import Rebuild
    from services.runtime.bus import Bus

# History folds what came while it was asked, and syncs.
SWAP_TIMEOUT_S = 60.0

Only = Annotated[
    Literal["sessions", "messages", "turns", "words"] | None,
    typer.Option(help="Rebuild this one, with what it is made from; the others are kept as they are."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Compare only, and leave nothing behind.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]


def replay(context: typer.Context, only: Only = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Rebuild the views from the log while they serve, compare, and let the new ones take over. Ctrl-C keeps what is
    there: the next `chatlog replay` goes on."""
    from services.history.tools.replay import ReplayFailed, rebuilding

    folder = load_all(parse_flags(context.args)).operator.data_dir.absolute()
    try:
        with rebuilding(folder, only) as rebuild, _progress(rebuild, shown=sys.stderr.isatty() and not as_json) as told:
            compared = rebuild.run(told)
            _say(compared, as_json=as_json)
            if dry_run:
                rebuild.remove()
                sys.exit(0 if not compared.differences else 1)
            rebuild.finish(told)
            serving = _swap(context, folder)
    except KeyboardInterrupt:
        _end("cancelled; the next `chatlog replay` goes on from here")
    except ReplayFailed as error:
        _end(str(error))
    if not as_json:
        typer.echo(f"{serving} serves")


def _swap(context: typer.Context, folder: Path) -> str:
    """The name of the file that serves from now on."""
    from services.history.tools.replay import install

    installed = install(folder)
    return installed.name if installed else on_history(context, _ask)


async def _ask(bus: Bus) -> str:
    from contracts.replay import SWAP_QUERY, SwapViewsQuery, SwapViewsReply
    from services.history.tools.replay import ReplayFailed
    from services.operator.queries import ask, who

    try:
        reply = await ask(bus, SWAP_QUERY, SwapViewsQuery(by=who()), SwapViewsReply, SWAP_TIMEOUT_S)
    except AskFailed as error:
        raise ReplayFailed(f"{error}; the views are rebuilt, and `chatlog replay` asks again") from error
    if reply.status == "refused":
        raise ReplayFailed(f"history refuses: {reply.reason}")
    return reply.file


def _say(compared: Comparison, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(values(compared)))
        return
    for line in lines(compared):
        typer.echo(line)


def values(compared: Comparison) -> dict[str, Any]:
    """The comparison for programs."""
    found = [{"view": each.view, "row": each.row, "what": each.what} for each in compared.differences]
    return {
        "position": compared.position,
        "equal": compared.equal,
        "not_compared": compared.not_compared,
        "differences": found,
    }


def lines(compared: Comparison) -> Iterator[str]:
    """The comparison for a person."""
    if compared.not_compared is not None:
        yield f"not compared: {compared.not_compared}"
        return
    for each in compared.differences:
        yield f"{each.view} {each.row}: {each.what}"
    said = "the serving views say otherwise" if compared.differences else "the serving views say the same"
    yield f"rebuilt and compared at position {compared.position}: {said}"


@contextmanager
def _progress(rebuild: Rebuild, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Events, their rate, and how long it will take."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:,.0f} events/s")

    columns = ("events", BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task("replay", total=rebuild.last, completed=rebuild.position)

        def told(position: int) -> None:
            bar.update(task, completed=position, total=max(rebuild.last, position))

        yield told


def _end(line: str) -> None:
    typer.echo(f"chatlog: {line}", err=True)
    sys.exit(1)
