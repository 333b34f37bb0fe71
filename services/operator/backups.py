"""`chatlog backup` and `chatlog restore`: what is typed.

Owns the two commands' arguments, and that whatever refuses them is one line. The work is copying.py's, imported when it
is asked for: every other command starts without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.operator.folder import DataFolder
from services.operator.settings import OperatorSettings, load_all, parse_flags

File = Annotated[Path, typer.Argument(metavar="FILE")]
Force = Annotated[bool, typer.Option("--force", help="Replace FILE where it is there.")]
AcceptGap = Annotated[
    bool, typer.Option("--accept-gap", help="Go on where events between FILE and the intake are gone.")
]


def backup(context: typer.Context, file: File, force: Force = False) -> None:
    """Write a consistent copy of the log to FILE, while the stack runs or while it does not."""
    from services.operator import copying

    with copying.refused_in_a_line():
        typer.echo(copying.back_up(_folder(_settings(context)), file, force=force))


def restore(context: typer.Context, file: File, accept_gap: AcceptGap = False) -> None:
    """Put the backup FILE in the log's place, while the stack is stopped; the next start catches up from the intake."""
    from services.operator import copying

    settings = _settings(context)
    with copying.refused_in_a_line():
        for line in copying.restore(settings, _folder(settings), file, accept_gap=accept_gap):
            typer.echo(line)


def _settings(context: typer.Context) -> OperatorSettings:
    return load_all(parse_flags(context.args)).operator


def _folder(settings: OperatorSettings) -> DataFolder:
    return DataFolder(settings.data_dir.absolute())
