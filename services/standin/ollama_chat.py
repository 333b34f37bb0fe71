"""Beside the road: Ollama's /api/chat: one answer as NDJSON lines, or whole; loads, unloads, errors before and after.

It owns how the steps of an answer look on Ollama's wire, byte for byte: no header before the first piece, nanoseconds,
an error as the last line of a 200. It must never decide what the answer says.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any, Final

from services.standin import gojson, ollama_requests
from services.standin.bodies import texts_of, tolerant_fields
from services.standin.faults import BUSY, RUNNER_LOST, Asked, FaultBook, Plan
from services.standin.generation import Generation, Job
from services.standin.model import Catalogue, ModelSpec, Piece
from services.standin.ollama_requests import ChatRequest, Refused
from services.standin.prompt import PromptTooLong, Window, render
from services.standin.report import Record
from services.standin.scheduler import LoadOptions, QueueFull, RunnerLost
from services.standin.strikes import Strikes, Struck, http_date
from services.standin.telling import Admitted, Finished
from services.standin.wire import Reply, Request

JSON: Final = "application/json; charset=utf-8"
CUT_REFUSED: Final = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the "
    "context length in settings, or use a model with a longer context length"
)
RUNNER_LOST_WAITING: Final = "llama-server process no longer running: unknown "


class OllamaChat:
    """Answers POST /api/chat."""

    def __init__(self, catalogue: Catalogue, generation: Generation, book: FaultBook) -> None:
        self._catalogue = catalogue
        self._generation = generation
        self._book = book

    async def handle(self, request: Request, reply: Reply) -> None:
        fields = tolerant_fields(request.body)
        report = self._generation.report
        record = report.begin("ollama", fields, request, reply.departure)
        plan = self._book.plan(Asked("ollama", "chat", record.model, texts_of(fields)))
        strikes = Strikes(plan, reply, self._generation.scheduler)
        with report.following(record):
            try:
                await strikes.before_headers()
                chat = ollama_requests.parse(request.body)
                spec = self._catalogue.find(chat.model)
                if spec is None:
                    raise Refused(404, f"model '{chat.model}' not found")
                job = self._job(record, chat, spec, plan)
                record.outcome = await _Answer(self._generation, chat, job, reply, strikes).give()
            except Struck as struck:
                record.outcome = struck.kind
            except Refused as refused:
                record.outcome = "refused"
                await _refuse(reply, refused)

    def _job(self, record: Record, chat: ChatRequest, spec: ModelSpec, plan: Plan) -> Job:
        if chat.messages or chat.keep_alive_s != 0:
            ollama_requests.check_model(chat, spec)
        options = chat.options
        window = self._catalogue.window(spec, options.get("num_ctx"))
        seed = options.get("seed")
        return Job(
            record=record,
            spec=spec,
            messages=chat.messages,
            load=LoadOptions(window, chat.shift),
            window=Window(window, chat.truncate, chat.shift),
            keep_alive_s=chat.keep_alive_s,
            thinks=spec.thinks and chat.think is not False,
            limit=max(0, options.get("num_predict") or 0) or None,
            stops=chat.stops,
            seed=None if seed in (None, -1) else seed,
            plan=plan,
        )


class _Answer:
    """One request whose model is known, up to its end; gives the outcome for the report."""

    def __init__(self, generation: Generation, chat: ChatRequest, job: Job, reply: Reply, strikes: Strikes) -> None:
        self._generation = generation
        self._chat = chat
        self._job = job
        self._reply = reply
        self._strikes = strikes
        self._message: dict[str, str] = {"content": "", "thinking": ""}

    async def give(self) -> str:
        scheduler = self._generation.scheduler
        if not self._chat.messages and self._chat.keep_alive_s == 0:
            scheduler.unload(self._job.spec)
            return await self._whole({"done": True, "done_reason": "unload"})
        try:
            if not self._chat.messages:
                runner = await scheduler.acquire(self._job.spec, self._job.load, self._job.keep_alive_s)
                scheduler.release(runner)
                return await self._whole({"done": True, "done_reason": "load"})
            if self._chat.render_only:
                return await self._rendered()
            return await self._generate()
        except QueueFull as error:
            raise Refused(503, BUSY) from error
        except PromptTooLong as error:
            raise Refused(400, _too_long(error), from_runner=True) from error
        except RunnerLost as lost:
            return await self._failed(RUNNER_LOST_WAITING if lost.waiting else RUNNER_LOST)

    async def _generate(self) -> str:
        record = self._job.record
        async with aclosing(self._generation.run(self._job)) as steps:
            async for step in steps:
                if isinstance(step, Admitted):
                    continue
                line = self._line(step)
                if self._chat.stream and line and not self._reply.started:
                    await self._reply.start(200, _headers("application/x-ndjson"))
                    record.first_byte = time.monotonic()
                if fault := await self._strikes.at(record.pieces_sent, line, self._job.spec):
                    return await self._broken(fault.kind, fault.text)
                if isinstance(step, Finished):
                    return await self._finish(step, line)
                await self._piece(step, line)
        raise AssertionError("an answer ended without an end")

    async def _piece(self, piece: Piece, line: bytes) -> None:
        record = self._job.record
        if self._chat.stream:
            await self._reply.write(line)
        else:
            self._message["thinking" if piece.thinking else "content"] += piece.text
        record.pieces_sent += 1

    async def _finish(self, finished: Finished, line: bytes) -> str:
        if self._chat.stream:
            if finished.reason is not None:
                await self._reply.write(line)
            await self._reply.end()
        else:
            await self._whole({"done": finished.reason is not None, **_counts(finished)})
        return "done" if finished.reason else "guard"

    def _line(self, step: Piece | Finished) -> bytes:
        if isinstance(step, Finished):
            message, rest = {"role": "assistant", "content": ""}, {"done": True, **_counts(step)}
        elif step.thinking:
            message, rest = {"role": "assistant", "content": "", "thinking": step.text}, {"done": False}
        else:
            message, rest = {"role": "assistant", "content": step.text}, {"done": False}
        return gojson.encode({**self._head(), "message": message, **rest}) + b"\n"

    def _head(self) -> dict[str, Any]:
        return {"model": self._chat.model, "created_at": gojson.timestamp(time.time_ns())}

    async def _whole(self, rest: dict[str, Any]) -> str:
        message = {"role": "assistant", "content": self._message["content"]}
        if self._message["thinking"]:
            message["thinking"] = self._message["thinking"]
        body = gojson.encode({**self._head(), "message": message, **rest})
        self._job.record.first_byte = time.monotonic()
        await self._reply.whole(200, _headers(JSON), body)
        return "done"

    async def _rendered(self) -> str:
        message = {"role": "", "content": ""}
        debug = {"_debug_info": {"rendered_template": render(self._job.messages)}}
        body = gojson.encode({**self._head(), "message": message, "done": False, **debug})
        await self._reply.whole(200, _headers(JSON), body)
        return "done"

    async def _broken(self, kind: str, text: str) -> str:
        if kind == "error_line":
            return await self._failed(text)
        if self._chat.stream:
            await self._reply.end()
        else:
            await self._whole({"done": False})
        return kind

    async def _failed(self, text: str) -> str:
        """An error after the headers is the last line of a 200 that ends cleanly; before them it is a 500."""
        if not self._reply.started:
            await _refuse(self._reply, Refused(500, text, from_runner=True))
        else:
            await self._reply.write(gojson.encode({"error": text}) + b"\n")
            await self._reply.end()
        return "error"


async def _refuse(reply: Reply, refused: Refused) -> None:
    body = gojson.encode({"error": refused.error})
    if refused.from_runner:
        await reply.start(refused.status, _headers("application/json"))
        await reply.write(body)
        await reply.end()
    else:
        await reply.whole(refused.status, _headers(JSON), body)


def _counts(finished: Finished) -> dict[str, Any]:
    """What the end tells; a zero is left out on this wire, so a duration is never less than Ollama's own 1000."""
    if finished.reason is None:
        return {}
    return {
        "done_reason": finished.reason,
        "total_duration": finished.total_ns,
        "load_duration": max(1000, finished.load_ns),
        "prompt_eval_count": finished.prompt_tokens,
        "prompt_eval_duration": max(1000, finished.prefill_ns),
        "eval_count": finished.tokens,
        "eval_duration": max(1000, finished.decode_ns),
    }


def _too_long(error: PromptTooLong) -> str:
    if error.cut_refused:
        return CUT_REFUSED
    nested = {
        "code": 400,
        "message": f"{error}, try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": error.prompt_tokens,
        "n_ctx": error.window,
    }
    return gojson.encode({"error": nested}).decode()


def _headers(content_type: str) -> list[tuple[str, str]]:
    return [("Content-Type", content_type), ("Date", http_date())]
