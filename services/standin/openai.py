"""Beside the road: OpenAI's wire as llama.cpp's server speaks it: /v1/models and /v1/chat/completions.

It owns routes, key, refusals and the stream, with headers once the slot is there and before the prompt is read. It
must never be a second model: what is said comes from the same generation as on Ollama's wire.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Final

from services.standin import openai_chunks, openai_requests
from services.standin.bodies import texts_of, tolerant_fields
from services.standin.faults import RUNNER_LOST, Asked, Dialect, Fault, FaultBook, Plan
from services.standin.generation import Generation, Job
from services.standin.hosts import HostRule, origin_allowed
from services.standin.model import Catalogue, ModelSpec, Piece
from services.standin.openai_chunks import Chunks
from services.standin.openai_requests import Completion, Refused
from services.standin.prompt import PromptTooLong, Window
from services.standin.report import Record
from services.standin.scheduler import LoadOptions, QueueFull, RunnerLost
from services.standin.strikes import Strikes, Struck, http_date
from services.standin.telling import Admitted, Finished
from services.standin.wire import Headers, Reply, Request

JSON: Final = "application/json; charset=utf-8"
STREAM: Final = "text/event-stream"


class OpenaiDoor:
    """Answers one request of OpenAI's wire; with a key, it refuses those without it."""

    def __init__(
        self,
        catalogue: Catalogue,
        generation: Generation,
        book: FaultBook,
        api_key: str | None,
        host_allowed: HostRule,
    ) -> None:
        self._catalogue = catalogue
        self._generation = generation
        self._book = book
        self._api_key = api_key
        self._host_allowed = host_allowed

    async def handle(self, request: Request, reply: Reply) -> None:
        hosted = self._host_allowed(request.headers.get("host"))
        if not hosted or not origin_allowed(request.headers.get("origin")):
            await reply.whole(403, [("Date", http_date())])
        elif request.path == "/health" and request.method == "GET":
            await reply.whole(200, _headers(JSON), openai_chunks.encode({"status": "ok"}))
        elif self._api_key and request.headers.get("authorization") != f"Bearer {self._api_key}":
            await _refuse(reply, Refused(401, "Invalid API Key", "authentication_error"))
        elif request.path == "/v1/models" and request.method == "GET":
            await self._models(reply)
        elif request.path == "/v1/chat/completions" and request.method == "POST":
            await self._chat(request, reply)
        else:
            await _refuse(reply, Refused(404, "File Not Found", "not_found_error"))

    async def _models(self, reply: Reply) -> None:
        plan = self._book.plan(Asked("openai", "models"))
        try:
            await Strikes(plan, reply, self._generation.scheduler).before_headers()
        except Struck:
            return
        page = openai_chunks.models(self._catalogue.without(plan.unlisted), int(time.time()), plan.dialect)
        await reply.whole(200, _headers(JSON), openai_chunks.encode(page))

    async def _chat(self, request: Request, reply: Reply) -> None:
        fields = tolerant_fields(request.body)
        report = self._generation.report
        record = report.begin("openai", fields, request, reply.departure)
        plan = self._book.plan(Asked("openai", "chat", record.model, texts_of(fields)))
        strikes = Strikes(plan, reply, self._generation.scheduler)
        with report.following(record):
            try:
                await strikes.before_headers()
                asked = openai_requests.parse(request.body)
                job = self._job(record, asked, self._spec(asked.model, plan.dialect), plan)
                record.outcome = await _Answer(self._generation, asked, job, reply, strikes).give()
            except Struck as struck:
                record.outcome = struck.kind
            except Refused as refused:
                record.outcome = "refused"
                await _refuse(reply, refused)

    def _spec(self, name: str, dialect: Dialect) -> ModelSpec:
        if spec := self._catalogue.find(name):
            return spec
        if dialect.unknown_model == "serve":
            return next(iter(self._catalogue))
        raise Refused(404, f"model '{name}' not found", "not_found_error")

    def _job(self, record: Record, asked: Completion, spec: ModelSpec, plan: Plan) -> Job:
        window = self._catalogue.window(spec)
        return Job(
            record=record,
            spec=spec,
            messages=asked.messages,
            load=LoadOptions(window, shift=True),
            window=Window(window, truncate=False, shift=False),
            keep_alive_s=None,
            thinks=spec.thinks and asked.thinks,
            limit=asked.limit,
            stops=asked.stops,
            seed=asked.seed,
            plan=plan,
        )


class _Answer:
    """One accepted completion, up to its end; gives the outcome for the report."""

    def __init__(self, generation: Generation, asked: Completion, job: Job, reply: Reply, strikes: Strikes) -> None:
        self._generation = generation
        self._asked = asked
        self._job = job
        self._reply = reply
        self._strikes = strikes
        self._dialect = job.plan.dialect
        self._chunks = Chunks(asked.model, job.record.id, int(time.time()), self._dialect)
        self._said: dict[bool, str] = {False: "", True: ""}

    async def give(self) -> str:
        try:
            if self._dialect.headers == "arrival":
                await self._open()
            return await self._generate()
        except QueueFull as error:
            raise Refused(503, "Loading model", "unavailable_error") from error
        except PromptTooLong as error:
            counts = {"n_prompt_tokens": error.prompt_tokens, "n_ctx": error.window}
            raise Refused(400, f"{error}, try increasing it", "exceed_context_size_error", **counts) from error
        except RunnerLost:
            return await self._failed(RUNNER_LOST, "object")

    async def _generate(self) -> str:
        record = self._job.record
        async with aclosing(self._generation.run(self._job)) as steps:
            async for step in steps:
                if isinstance(step, Admitted):
                    if self._dialect.headers == "slot":
                        await self._open()
                    continue
                await self._open()
                bytes_due = self._chunks.piece(step) if isinstance(step, Piece) else b""
                if fault := await self._strikes.at(record.pieces_sent, bytes_due, self._job.spec):
                    return await self._broken(fault)
                if isinstance(step, Finished):
                    return await self._finish(step)
                await self._piece(step, bytes_due)
        raise AssertionError("an answer ended without an end")

    async def _open(self) -> None:
        """Headers and the chunk that tells the role; once, and only for a stream."""
        if self._reply.started or not self._asked.stream:
            return
        await self._reply.start(200, _headers(STREAM))
        await self._comment()
        await self._reply.write(self._chunks.role())
        self._job.record.first_byte = time.monotonic()

    async def _comment(self) -> None:
        if self._dialect.comment:
            await self._reply.write(f"{self._dialect.comment}\n\n".encode())

    async def _piece(self, piece: Piece, chunk: bytes) -> None:
        if self._asked.stream:
            await self._reply.write(chunk)
            await self._comment()
        else:
            self._said[piece.thinking] += piece.text
        self._job.record.pieces_sent += 1

    async def _finish(self, finished: Finished) -> str:
        if self._asked.stream:
            for chunk in self._chunks.last(finished, usage_asked=self._asked.usage_asked):
                await self._reply.write(chunk)
            await self._reply.end()
        else:
            body = self._chunks.whole(finished, self._said[False], self._said[True])
            await self._reply.whole(200, _headers(JSON), body)
        return "done"

    async def _broken(self, fault: Fault) -> str:
        if fault.kind == "error_line":
            return await self._failed(fault.text, fault.form)
        if self._reply.started:
            await self._reply.end()
        else:
            await self._reply.whole(200, _headers(JSON))
        return fault.kind

    async def _failed(self, text: str, form: str) -> str:
        """An error after the headers is an event with `error`; before them it is a 500."""
        refused = Refused(500, text, "server_error")
        if not self._reply.started:
            await _refuse(self._reply, refused)
        else:
            await self._reply.write(openai_chunks.event({"error": refused.error if form == "object" else text}))
            await self._reply.end()
        return "error"


async def _refuse(reply: Reply, refused: Refused) -> None:
    if reply.started:
        await reply.write(openai_chunks.event({"error": refused.error}))
        await reply.end()
    else:
        await reply.whole(refused.status, _headers(JSON), openai_chunks.encode({"error": refused.error}))


def _headers(content_type: str) -> Headers:
    """llama.cpp's: no Date, and an Access-Control-Allow-Origin that allows nobody."""
    return [("Server", "llama.cpp stand-in"), ("Access-Control-Allow-Origin", ""), ("Content-Type", content_type)]
