"""`chatlog export` and `chatlog import`: what is typed, and what is said of what was done.

Owns the files and the exit code: 0 only where all was exported or imported. An export reads the log's file, whether the
stack runs or not; an import needs the running stack, for history alone writes to its log.
"""

from __future__ import annotations

import os
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, NoReturn

import typer

from contracts import ids
from services.operator.running import on_history
from services.operator.settings import load_all, parse_flags

if TYPE_CHECKING:
    from services.history.tools.export import Exported, Source
    from services.operator.sending import Sent
    from services.runtime.bus import Bus

# The user of a gateway that asks for no keys.
LOCAL_USER = "local"
FILE_MODE = 0o600
_CHATGPT_FILE = "conversations.json"
# The longest line that is read: the largest event and its escapes.
_LINE_BYTES = 16 * 1024 * 1024

SessionName = Annotated[str | None, typer.Argument(metavar="[SESSION]", help="An id or name:NAME; without it: all.")]
ExportUser = Annotated[str, typer.Option(help="Whose sessions.")]
ExportFormat = Annotated[Literal["jsonl", "markdown"], typer.Option("--format", help="jsonl: for an import.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="A file, for you alone; without it: printed.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file where it is there.")]
InputFile = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False)]
ImportUser = Annotated[str | None, typer.Option(help="Whose the sessions become or are; an export says it itself.")]
ImportFormat = Annotated[
    Literal["jsonl", "chatgpt"] | None, typer.Option("--format", help="What FILE is, where it is not seen.")
]


def export(
    context: typer.Context,
    session: SessionName = None,
    user: ExportUser = LOCAL_USER,
    as_format: ExportFormat = "jsonl",
    output: Output = None,
    force: Force = False,
) -> None:
    """Write a session, or all of a user's, as JSON Lines of events or as Markdown, while the stack runs or not.

    Of a damaged log, too; but then it ends with 1.
    """
    from services.history.tools import export as tool

    log = load_all(parse_flags(context.args)).operator.data_dir.absolute() / "log.db"
    write = tool.export_lines if as_format == "jsonl" else tool.export_markdown
    if output is not None and output.exists() and not force:
        _fail(f"{output} is there already; --force replaces it")
    try:
        with tool.opened(log, user) as source:
            chosen = _chosen(source, session)
            damaged = source.damaged
            with _written(output) as file:
                done = write(source, chosen, file.write)
                if session is not None and not done.sessions:
                    raise tool.ExportFailed(f"session {session} is deleted: no page shows it")
    except tool.ExportFailed as error:
        _fail(str(error))
    typer.echo(_exported(done), err=True)
    if damaged:
        first = f"{len(damaged)} of these events are not what was recorded, first that at position {damaged[0]}"
        _fail(f"{first}; `chatlog verify` says more")


def import_file(
    context: typer.Context, file: InputFile, user: ImportUser = None, as_format: ImportFormat = None
) -> None:
    """Bring sessions into the running stack: FILE is an export, or ChatGPT's conversations.json or its zip."""
    found = as_format or _guess(file)
    sent, left_out = on_history(context, lambda bus: _import(bus, file, user, found))
    for problem in sent.problems:
        typer.echo(problem, err=True)
    typer.echo(_imported(sent, left_out), err=True)
    sys.exit(1 if sent.problems else 0)


async def _import(bus: Bus, file: Path, user: str | None, found: str) -> tuple[Sent, Counter[str]]:
    if found == "jsonl":
        return await _import_export(bus, file, user), Counter()
    return await _import_chatgpt(bus, file, user or LOCAL_USER)


async def _import_export(bus: Bus, file: Path, user: str | None) -> Sent:
    from services.history.tools.exported_file import NotAnExport, sessions_of
    from services.operator.sending import Sent, send_sessions

    sent = Sent()
    with file.open("rb") as stream:
        try:
            await send_sessions(bus, sessions_of(_lines(stream), user), sent)
        except NotAnExport as error:
            sent.problems.append(f"{file}: {error}")
    return sent


async def _import_chatgpt(bus: Bus, file: Path, user_id: str) -> tuple[Sent, Counter[str]]:
    from services.operator.chatgpt import NotAConversation, read_conversation
    from services.operator.json_array import NotAnArray, array_items
    from services.operator.sending import Sent, send_conversation

    sent, left_out = Sent(), Counter[str]()
    with _chatgpt_stream(file) as stream:
        try:
            for number, item in enumerate(array_items(stream), 1):
                try:
                    conversation = read_conversation(item)
                except NotAConversation as error:
                    sent.problems.append(f"conversation {number}: {error}")
                    continue
                left_out += conversation.left_out
                await send_conversation(bus, user_id, conversation, sent)
        except NotAnArray as error:
            sent.problems.append(f"{file}: {error}")
    return sent, left_out


def _chosen(source: Source, session: str | None) -> Iterator[str]:
    """What is there to be exported: nothing is written before that is known. Raises ExportFailed."""
    from services.history.tools.export import ExportFailed

    user = source.user_id
    chosen = source.sessions() if session is None else iter([_session_id(user, session)])
    first = next(chosen, None)
    if first is None:
        raise ExportFailed(f"{user} has no sessions; --user says whose they are")
    if source.settled(first) == (0, 0):
        raise ExportFailed(f"{user} has no session {session}; --user says whose it is")
    return chain([first], chosen)


def _session_id(user_id: str, session: str) -> str:
    """As at the doors: an id, or a name of the user's own."""
    name = session.removeprefix("name:")
    return session if name == session else ids.session_id_of_name(user_id, name)


@contextmanager
def _written(output: Path | None) -> Iterator[BinaryIO]:
    """Standard output; or a file that is there only once it is whole."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = output.with_name(f"{output.name}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE), "wb") as file:
            yield file
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def _guess(file: Path) -> str:
    if zipfile.is_zipfile(file):
        return "chatgpt"
    with file.open("rb") as stream:
        return "chatgpt" if stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[" else "jsonl"


@contextmanager
def _chatgpt_stream(file: Path) -> Iterator[Any]:
    """conversations.json, out of the zip where it is in one."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == _CHATGPT_FILE]
        if not names:
            _fail(f"{file} holds no {_CHATGPT_FILE}")
        with archive.open(names[0]) as stream:
            yield stream


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines of a bounded length: a longer one is cut, which no reader takes for whole."""
    while line := stream.readline(_LINE_BYTES):
        rest = line
        while not rest.endswith(b"\n") and (rest := stream.readline(_LINE_BYTES)):
            pass
        yield line


def _exported(done: Exported) -> str:
    said = f"exported: sessions {done.sessions}, events {done.events}"
    if not done.unfinished:
        return said
    behind = f"sessions {done.unfinished}, events {done.left_out}"
    return f"{said}; left for the next export, behind unfinished turns: {behind}"


def _imported(sent: Sent, left_out: Counter[str]) -> str:
    said = f"sessions imported {sent.imported}, unchanged {sent.unchanged}, problems {len(sent.problems)}"
    if not left_out:
        return said
    counts = ", ".join(f"{reason} {count}" for reason, count in sorted(left_out.items()))
    return f"{said}; messages left out: {counts}"


def _fail(line: str) -> NoReturn:
    sys.stderr.write(f"chatlog: {line}\n")
    sys.exit(1)
