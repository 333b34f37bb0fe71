"""Off the road, inference/rerun: a recorded context at the model server once more, as a worker would run it.

Owns one request outside the queue, with a worker's own adapters, retries and bounds. Must never touch NATS: nothing of
it is claimed, shown to anybody or recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from contracts.turns import QueuedContext
from services.inference.app import open_server, rules_of
from services.inference.generation import Generation, request_of
from services.inference.models.port import ModelFailure, ModelServer
from services.inference.run import Completed, Failed, Lost
from services.inference.settings import InferenceSettings
from services.inference.tokens import Answer


@dataclass(frozen=True, slots=True)
class Rerun:
    """What came of it. code: why it failed; the text is then what was said until then."""

    model: str
    digest: str | None
    thinking: str
    text: str
    end: str | None
    code: str | None
    usage: dict[str, int] = field(default_factory=dict)


async def rerun(
    settings: InferenceSettings, context: QueuedContext, model: str | None, said: Callable[[str, str], None]
) -> Rerun:
    """Ask for the context's answer again, of this model (None: its own). said: called with each (thinking, text)."""
    request = replace(request_of(context), model=model or context.data.model)
    rules = rules_of(settings)
    answer = Answer(context.event.session_id, context.turn_id, rules.token_chars)

    def give_out() -> None:
        for frame in answer.give_out(attempt=1):
            said(frame.thinking or "", frame.text)

    server = open_server(settings)
    try:
        digest = await _digest_of(server, request.model)
        outcome = await Generation(server, request, answer, rules.bounds).run(give_out)
    finally:
        await server.aclose()
    completed = outcome if isinstance(outcome, Completed) else None
    return Rerun(
        model=request.model,
        digest=digest,
        thinking=answer.thinking,
        text=answer.text,
        end=completed.end if completed else None,
        code=outcome.code if isinstance(outcome, Failed | Lost) else None,
        usage=completed.usage if completed else {},
    )


async def _digest_of(server: ModelServer, model: str) -> str | None:
    """As the server tells it now; one that cannot be asked says so when it is asked for the answer."""
    try:
        return next((known.digest for known in await server.models() if known.name == model), None)
    except ModelFailure:
        return None
