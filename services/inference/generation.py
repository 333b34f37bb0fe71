"""Step 12, inference/generation: one answer's stream from the model server -> pieces of the answer, and how it ended.

Owns the requests: their translation from the context, trying again before the first piece, and the bounds of time and
length. Must never let anything out: the slot does, once history has said go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from contracts.turns import QueuedContext
from services.inference.models.port import End, ModelFailure, ModelRequest, ModelServer, Patience
from services.inference.run import Again, Completed, Failed, Lost, Outcome, Trouble, after_failure
from services.inference.tokens import Answer

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long and how much. Units as in their names."""

    first_token_s: float
    between_tokens_s: float
    turn_s: float
    answer_chars: int


def request_of(context: QueuedContext) -> ModelRequest:
    """What the model server is asked: all of it is in the context, none of it is the worker's choice."""
    options = context.data.options
    return ModelRequest(
        model=context.data.model,
        messages=context.messages,
        seed=context.data.seed,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        max_tokens=options.max_tokens,
        stop=tuple(options.stop or ()),
    )


class Generation:
    """One attempt's requests to one server. said is called after each piece."""

    def __init__(self, server: ModelServer, request: ModelRequest, answer: Answer, bounds: Bounds) -> None:
        self._server = server
        self._request = request
        self._answer = answer
        self._bounds = bounds

    async def run(self, said: Callable[[], None]) -> Outcome:
        """How it ended. Cancelling closes the socket: the only cancel that model servers know."""
        try:
            async with asyncio.timeout(self._bounds.turn_s) as turn:
                return await self._until_it_ends(said)
        except TimeoutError:
            if not turn.expired():
                raise
            # It was given all the time that a turn has: another attempt would use it up alike.
            return Failed("model_stalled")

    async def _until_it_ends(self, said: Callable[[], None]) -> Outcome:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._bounds.first_token_s
        tries = 0
        before: ModelFailure | None = None
        while True:
            try:
                return await self._try(Patience(deadline - loop.time(), self._bounds.between_tokens_s), said)
            except ModelFailure as failure:
                tries += 1
                # A further try may have a moment only: that it came to nothing says less than what the server said.
                cut_short = failure.code == "model_stalled" and not self._answer.begun
                before = before if before is not None and cut_short else failure
                trouble = Trouble(before.code, before.again, tries, before.retry_after_s)
            verdict = after_failure(trouble, begun=self._answer.begun, left_s=deadline - loop.time())
            log.warning("model_failed", code=trouble.code, tries=tries, verdict=type(verdict).__name__)
            if isinstance(verdict, Lost | Failed):
                return verdict
            await _wait(verdict)

    async def _try(self, patience: Patience, said: Callable[[], None]) -> Outcome:
        async with aclosing(self._server.answer(self._request, patience)) as stream:
            async for item in stream:
                if isinstance(item, End):
                    return Completed(item.end, {str(count): number for count, number in item.usage.items()})
                room = self._bounds.answer_chars - self._answer.chars
                thinking = item.thinking[:room]
                self._answer.add(thinking, item.text[: room - len(thinking)])
                said()
                if self._answer.chars >= self._bounds.answer_chars:
                    return Completed("length")
        raise AssertionError("the port promises an End or a ModelFailure")


async def _wait(again: Again) -> None:
    await asyncio.sleep(again.after_s)
