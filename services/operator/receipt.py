"""`chatlog receipt`: what is behind an answer, from the log's file.

Owns what is printed of a receipt, and how a turn is found that is not there. Must never write, nor need a stack that
runs.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from contracts.receipts import Receipt
from services.operator import show
from services.operator.settings import StackSettings, load_all, parse_flags
from services.operator.show import printable, printable_lines

if TYPE_CHECKING:
    from services.history.tools.turns import FoundTurn

Turn = Annotated[str, typer.Argument(metavar="TURN", help="A turn's id: each of its events has it.")]
User = Annotated[str, typer.Option(help="Whose turn it is.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")]
_TURN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def receipt(context: typer.Context, turn: Turn, user: User = "local", as_json: AsJson = False) -> None:
    """What a turn's model was shown, by which rules, what was left out and why, and how often it was tried."""
    found = find(load_all(parse_flags(context.args)), user, turn)
    if as_json:
        typer.echo(show.as_json(found.receipt.model_dump(mode="json")))
        return
    for line in lines(found.receipt):
        typer.echo(line)


def find(settings: StackSettings, user_id: str, turn_id: str) -> FoundTurn:
    """The turn, from the log of the data folder; one that is not there ends the command."""
    from services.history.tools.turns import TurnNotFound, find_turn

    if not _TURN.fullmatch(turn_id.lower()):
        fail(f"{printable(turn_id)} is not a turn's id; `chatlog show SESSION --json` has it beside each message")
    try:
        return asyncio.run(find_turn(settings.operator.data_dir.absolute(), user_id, turn_id.lower()))
    except TurnNotFound as error:
        fail(str(error))


def fail(line: str) -> NoReturn:
    sys.stderr.write(f"chatlog: {line}\n")
    sys.exit(1)


def lines(receipt: Receipt) -> Iterator[str]:
    """For a person: the facts, then what was shown, then the evidence."""
    yield from facts(receipt)
    if receipt.system:
        yield f"\nsystem\n{printable_lines(receipt.system)}"
    for message in receipt.messages:
        yield f"\n{message.role}, at version {message.version}\n{printable_lines(message.text)}"
    yield ""
    for event in receipt.events:
        yield f"version {event.version}, position {event.position}, {event.recorded_at}: {event.type}"


def facts(receipt: Receipt) -> Iterator[str]:
    options = {"seed": receipt.seed, **receipt.options}
    counted = receipt.end.usage.get("prompt_tokens") if receipt.end and receipt.end.usage else None
    yield f"turn     {receipt.turn_id} of session {receipt.session_id}"
    yield f"model    {receipt.model}, digest {receipt.digest or 'not told'}"
    yield f"options  {_listed(options)}"
    yield (
        f"tokens   {receipt.budget.estimated} estimated, {'not' if counted is None else counted} counted by the server,"
        f" of a window of {receipt.budget.tokens}; {receipt.budget.reserve} kept for the answer"
    )
    yield f"left out {_listed(receipt.left_out) or 'nothing'}"
    yield f"hash     {receipt.rendered_hash}, {'as recorded' if receipt.verified else 'NOT that of the texts now'}"
    yield f"attempts {len(receipt.attempts)}"


def _listed(named: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in named.items())
