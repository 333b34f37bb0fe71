"""`chatlog show`: a session as it was, and what changed between two of its versions, as a person likes to read it.

Owns what is typed and how it looks. The reading is history's (services/history/tools/look.py), imported when it is
asked for: every other command starts without it.
"""

from __future__ import annotations

import asyncio
import json as as_json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from contracts.errors import ContractError
from contracts.ids import session_id_of_name
from contracts.queries import At, read_at
from services.operator.settings import load_all, parse_flags
from services.operator.show import printable

if TYPE_CHECKING:
    from services.history.tools.changes import Changed
    from services.history.tools.look import Seen

Session = Annotated[str, typer.Argument(metavar="SESSION", help="Its id, or name:<its name>.")]
User = Annotated[str, typer.Option(help="Whose it is.")]
When = Annotated[str | None, typer.Option(metavar="VERSION|TIME", help="As it was: 12, or 2026-11-20T10:00:00Z.")]
Diff = Annotated[str | None, typer.Option(metavar="A..B", help="What changed after A, up to B: versions or times.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]

_BEGINNING, _PRESENT = 0, 2**62
_NAME = "name:"


def show_session(
    context: typer.Context,
    session: Session,
    user: User = "local",
    at: When = None,
    diff: Diff = None,
    json: AsJson = False,
) -> None:
    """A session from the log, as it is or was; with --diff what changed, and who did it. The stack may run or not."""
    from services.history.tools.look import NotThere, changes_between, session_at

    folder = load_all(parse_flags(context.args)).operator.data_dir.absolute()
    key = user, session_id_of_name(user, session.removeprefix(_NAME)) if session.startswith(_NAME) else session.lower()
    if at is not None and diff is not None:
        _fail("--at shows one moment, --diff what lies between two: one of them", 2)
    try:
        if diff is not None:
            changes = asyncio.run(changes_between(folder, key, *_span(diff)))
            told = (_values(asdict(change)) for change in changes) if json else _change_lines(changes)
        else:
            seen = asyncio.run(session_at(folder, key, _PRESENT if at is None else _moment(at)))
            told = iter([_values({**seen.session, "messages": seen.messages})]) if json else _session_lines(seen)
    except NotThere as error:
        _fail(str(error), 1)
    for line in told:
        typer.echo(line)


def _span(text: str) -> tuple[At, At]:
    """Left out: the beginning, the present."""
    first, dots, last = text.partition("..")
    if not dots:
        _fail("--diff takes two versions or times, as 3..7", 2)
    return _moment(first) if first else _BEGINNING, _moment(last) if last else _PRESENT


def _moment(text: str) -> At:
    try:
        return read_at(text)
    except ContractError as error:
        _fail(error.reason, 2)


def _session_lines(seen: Seen) -> Iterator[str]:
    session = seen.session
    yield printable(str(session["title"] or session["name"] or "Untitled"))
    about = [f"session {session['session_id']}", f"user {session['user_id']}"]
    about += [f"name {session['name']}"] if session["name"] else []
    yield printable(", ".join([*about, f"version {session['version']}, recorded {session['updated_at']}"]))
    if session["deleted_at"]:
        yield f"deleted {session['deleted_at']}"
    path = _path(seen)
    for message in seen.messages:
        place = "" if message["message_id"] in path else ", in another branch"
        status = "" if message["status"] in ("recorded", "completed") else f", {message['status']}"
        code = f" ({message['code']})" if message["status"] == "failed" else ""
        yield ""
        who = session["user_id"] if message["role"] == "user" else message["model"] or "assistant"
        yield printable(f"{who}, version {message['version']}, {message['created_at']}{status}{code}{place}")
        yield from _indented("  ", message["text"])


def _path(seen: Seen) -> set[object]:
    """The messages from the root to the head."""
    parents = {message["message_id"]: message["parent_id"] for message in seen.messages}
    path: set[object] = set()
    at = seen.session["head"]
    while at is not None and at not in path:
        path.add(at)
        at = parents.get(at)
    return path


def _change_lines(changes: list[Changed]) -> Iterator[str]:
    for change in changes:
        model = f" by {change.model}" if change.model else ""
        because = f", because of {change.because}" if change.because else ""
        yield printable(f"version {change.version}, {change.at}, {change.who}: {change.what}{model}{because}")
        yield from _indented("  - ", change.before)
        yield from _indented("  + ", change.after)
    if not changes:
        yield "nothing changed"


def _indented(margin: str, text: object) -> Iterator[str]:
    return (margin + printable(line) for line in str(text or "").splitlines())


def _values(values: dict[str, Any]) -> str:
    return as_json.dumps(values, sort_keys=True)


def _fail(line: str, code: int) -> NoReturn:
    sys.stderr.write(f"chatlog: {line}\n")
    sys.exit(code)
