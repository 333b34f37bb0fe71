"""`chatlog rerun`: a turn's recorded context at the model server once more, beside the recorded answer.

Owns which server is asked (the one of the stack's workers), and what is printed: the recorded answer, the new one as it
comes, and where they differ. Must never write: no event, nothing on the queue.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.events import AnswerCancelled, AnswerCompleted, AnswerFailed
from services.operator import show
from services.operator.choice import Choice, choose
from services.operator.comparison import Comparison, compare
from services.operator.folder import DataFolder
from services.operator.programs import worker_settings
from services.operator.receipt import AsJson, Turn, User, facts, fail, find
from services.operator.settings import StackSettings, load_all, parse_flags
from services.operator.show import printable_lines
from services.runtime import logs

if TYPE_CHECKING:
    from services.history.tools.turns import FoundTurn
    from services.inference.rerun import Rerun
    from services.inference.settings import InferenceSettings

Model = Annotated[str | None, typer.Option(help="Ask another model than the recorded one.")]
_NAME_A_SERVER = {"model_server", "ollama_url", "openai_url"}
# Of a difference no more is printed; --json has both texts.
_DIFF_LINES = 40


def rerun(
    context: typer.Context, turn: Turn, model: Model = None, user: User = "local", as_json: AsJson = False
) -> None:
    """Run a turn's recorded context again, and compare the answers. Nothing is written, and nobody is shown it."""
    flags = parse_flags(context.args)
    settings = load_all(flags)
    logs.configure("chatlog", "critical")
    found = find(settings, user, turn)
    if not found.receipt.verified:
        fail("the texts in the log are not what the model was shown (rendered_hash); `chatlog verify` says more")
    worker = _worker_settings(settings, flags)
    before = _before(found, model)
    again = asyncio.run(_ask(worker, found, model or found.receipt.model, None if as_json else before))
    if again.code is not None and not (again.thinking or again.text):
        fail(_nothing_said(again, worker))
    compared = compare(_said(found.end), (again.thinking, again.text))
    if as_json:
        typer.echo(show.as_json(values(found, again, compared)))
    else:
        for line in chain(before, _after(found, again, compared)):
            typer.echo(line)
    sys.exit(0 if again.code is None else 1)


async def _ask(worker: InferenceSettings, found: FoundTurn, model: str, before: Iterator[str] | None) -> Rerun:
    """The new answer. before: is printed once the model speaks, and then what it says; None: nothing is."""
    from services.inference.rerun import rerun as ask

    thinks = False

    def said(thinking: str, text: str) -> None:
        nonlocal thinks
        thinks = thinks or bool(thinking)
        if before is not None:
            for line in before:  # they are there once: afterwards it is empty
                typer.echo(line)
            sys.stdout.write(printable_lines(thinking + ("\n\n" if thinks and text else "") + text))
            sys.stdout.flush()
        thinks = thinks and not text

    return await ask(worker, found.context, model, said)


def _worker_settings(settings: StackSettings, flags: dict[str, str]) -> InferenceSettings:
    """Of the stack that runs on this folder; without one, or where flags name another server, as `chatlog up` would."""
    folder = DataFolder(settings.operator.data_dir.absolute())
    if folder.stack_file.exists() and not flags.keys() & _NAME_A_SERVER:
        running = json.loads(folder.stack_file.read_text())
        choice = Choice(running["model_server"], running["model_server_url"], "the running stack's")
    else:
        choice = choose(settings)
    return worker_settings(settings, choice, folder.secrets(), flags)


def _nothing_said(again: Rerun, worker: InferenceSettings) -> str:
    """There is nothing to compare: the code says why."""
    server = f"the model server at {worker.ollama_url or worker.openai_url}"
    why = f"has no model {again.model}" if again.code == "model_not_found" else f"gave no answer by {again.model}"
    return f"{again.code}: {server} {why}"


def _before(found: FoundTurn, model: str | None) -> Iterator[str]:
    yield from facts(found.receipt)
    yield f"\nrecorded: {_ending(found.end)}"
    yield printable_lines("\n\n".join(part for part in _said(found.end) if part))
    yield f"\nagain, by {model or found.receipt.model}:"


def _after(found: FoundTurn, again: Rerun, compared: Comparison) -> Iterator[str]:
    yield f"\n\nagain: {again.code or again.end}, {again.usage.get('completion_tokens', 'no')} tokens counted"
    if again.digest != found.receipt.digest and again.model == found.receipt.model:
        yield f"the model is not the same: its digest is {again.digest or 'not told'} now"
    if compared.equal:
        yield "equal: the new answer says the same"
        return
    where = "in what it thought" if compared.differs_at is None else f"from character {compared.differs_at} on"
    yield f"different {where}"
    for line in compared.lines[:_DIFF_LINES]:
        yield printable_lines(line)
    if len(compared.lines) > _DIFF_LINES:
        yield f"and {len(compared.lines) - _DIFF_LINES} lines more"


def values(found: FoundTurn, again: Rerun, compared: Comparison) -> dict[str, Any]:
    """The same for programs."""
    thinking, text = _said(found.end)
    return {
        "turn_id": found.receipt.turn_id,
        "session_id": found.receipt.session_id,
        "seed": found.receipt.seed,
        "options": found.receipt.options,
        "rendered_hash": found.receipt.rendered_hash,
        "recorded": {
            "model": found.receipt.model,
            "digest": found.receipt.digest,
            "thinking": thinking,
            "text": text,
            "end": found.receipt.end.model_dump(mode="json") if found.receipt.end else None,
        },
        "again": asdict(again),
        "equal": compared.equal,
        "differs_at": compared.differs_at,
    }


def _said(end: AnswerCompleted | AnswerFailed | AnswerCancelled | None) -> tuple[str, str]:
    return ("", "") if end is None else (end.thinking or "", end.text or "")


def _ending(end: AnswerCompleted | AnswerFailed | AnswerCancelled | None) -> str:
    if end is None:
        return "not ended yet"
    return f"completed ({end.end})" if isinstance(end, AnswerCompleted) else f"not whole ({end.code})"
