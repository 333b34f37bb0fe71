"""Beside the road: one answer from a loaded model: slot, prefill, pieces at their time, the end and its counts.

It owns the order in which an answer comes about and the freeing of its slot, whoever leaves and when. It must never
know a wire: what it yields is put into bytes elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from services.standin.faults import Plan
from services.standin.model import ModelSpec, Piece, answer, thoughts
from services.standin.prompt import Message, Prompt, Window, fit
from services.standin.report import Record, Report
from services.standin.scheduler import LoadOptions, Runner, Scheduler
from services.standin.telling import Admitted, Finished, Step, Telling

LONGEST_ANSWER_IN_WINDOWS: Final = 10
"""An answer without a limit ends after ten windows, as in Ollama."""


class Speed(BaseModel):
    """How fast the stand-in is; the control plane may change it at any time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    load_s: float = Field(0.2, ge=0, description="time to load a model")
    prefill_tokens_per_s: float = Field(5000, gt=0, description="prompt tokens read per second; cached ones are free")
    token_gap_ms: float = Field(5, ge=0, description="time from one token of an answer to the next")
    answer_tokens: int = Field(48, ge=1, description="length of an answer that nothing limits")
    thinking_tokens: int = Field(24, ge=0, description="length of what a thinking model thinks first")
    prefill_notice_s: float = Field(
        1.0, ge=0, description="how long a slot stays taken, on Ollama's wire, once the client left in prefill"
    )


@dataclass(frozen=True)
class Job:
    """One answer as a wire asks for it."""

    record: Record
    spec: ModelSpec
    messages: tuple[Message, ...]
    load: LoadOptions
    window: Window
    keep_alive_s: float | None
    thinks: bool
    limit: int | None
    stops: tuple[str, ...]
    seed: int | None
    plan: Plan


class Generation:
    """Makes answers, each for one slot of a runner."""

    def __init__(self, scheduler: Scheduler, report: Report, speed: Speed) -> None:
        self.scheduler = scheduler
        self.report = report
        self.speed = speed

    async def run(self, job: Job) -> AsyncGenerator[Step, None]:
        """The steps of one answer. Raises QueueFull, PromptTooLong or RunnerLost. Close it to leave: the slot is
        then free at once, or, in prefill, once the server would have noticed."""
        arrived = time.monotonic_ns()
        runner = await self.scheduler.acquire(job.spec, job.load, job.keep_alive_s)
        taken = False
        try:
            load_ns = time.monotonic_ns() - arrived
            prompt = fit(job.messages, job.window)
            job.record.phase = "waiting"
            await runner.take_slot()
            taken = True
            self.report.slot_taken(job.record)
            yield Admitted()
            async for step in self._decode(job, runner, prompt, (arrived, load_ns)):
                yield step
        finally:
            if taken:
                self._leave(job, runner)
            else:
                self.scheduler.release(runner)

    def _leave(self, job: Job, runner: Runner) -> None:
        """Frees the slot. In prefill a server goes on reading: Ollama's for a second, llama.cpp's to the end."""
        still_reading_s = 0.0
        if job.record.phase == "prefill" and not runner.dead:
            left = max(0.0, self._prefill_left_s(job.record))
            still_reading_s = min(left, self.speed.prefill_notice_s) if job.record.wire == "ollama" else left
        job.record.phase = "ended"
        if job.plan.first("leak_slot") and job.record.departure.at is not None:
            # Its client has gone and the runner does not notice, ever: only another runner has the slot again.
            self.report.slot_leaked()
            self.scheduler.release(runner)
            return

        def free() -> None:
            runner.free_slot()
            self.report.slot_freed(job.record)
            self.scheduler.release(runner)

        if still_reading_s > 0:
            asyncio.get_running_loop().call_later(still_reading_s, free)
        else:
            free()

    def _prefill_left_s(self, record: Record) -> float:
        assert record.slot_start is not None
        uncached = record.prompt_tokens - record.cached_tokens
        return record.slot_start + uncached / self.speed.prefill_tokens_per_s - time.monotonic()

    async def _decode(
        self, job: Job, runner: Runner, prompt: Prompt, before: tuple[int, int]
    ) -> AsyncGenerator[Step, None]:
        record = job.record
        record.prompt_tokens = prompt.tokens
        record.cached_tokens = runner.cache.cached_tokens(prompt)
        prefill_from = time.monotonic_ns()
        await runner.pause((prompt.tokens - record.cached_tokens) / self.speed.prefill_tokens_per_s)
        decode_from = time.monotonic_ns()
        record.phase = "decode"
        telling = self._telling(job, prompt)
        said: list[str] = []
        gap_s = self.speed.token_gap_ms / 1000
        due = time.monotonic()
        for piece in telling:
            await runner.pause(max(0.0, due - time.monotonic()))
            due += gap_s
            record.token_made()
            if piece is not None:
                said.append("" if piece.thinking else piece.text)
                yield piece
        runner.cache.remember((*prompt.messages, Message("assistant", "".join(said))))
        now = time.monotonic_ns()
        yield Finished(
            reason=telling.reason,
            prompt_tokens=prompt.tokens,
            cached_tokens=record.cached_tokens,
            tokens=telling.tokens,
            load_ns=before[1],
            prefill_ns=decode_from - prefill_from,
            decode_ns=now - decode_from,
            total_ns=now - before[0],
        )

    def _telling(self, job: Job, prompt: Prompt) -> Telling:
        room = job.window.size * LONGEST_ANSWER_IN_WINDOWS if job.window.shift else job.window.size - prompt.tokens
        return Telling(
            self._source(job, prompt),
            limit=max(1, min(job.limit or room, room)),
            stops=job.stops,
            guarded=job.record.wire == "ollama",
        )

    def _source(self, job: Job, prompt: Prompt) -> Iterator[Piece]:
        if script := job.plan.script:
            thinking = (Piece(text, thinking=True) for text in script.thinking if job.thinks)
            return chain(thinking, (Piece(text) for text in script.pieces))
        spoken = answer(prompt.text, job.seed, self.speed.answer_tokens)
        return chain(thoughts(prompt.text, job.seed, self.speed.thinking_tokens), spoken) if job.thinks else spoken
