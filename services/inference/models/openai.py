"""Step 12, inference/models/openai: servers that speak OpenAI's chat completions: llama.cpp, vLLM, hosted.

Owns the translation of a request into POST /chat/completions and of its events into pieces and the end. An answer is
whole only with a finish_reason that is known; a missing [DONE] or usage after that is fine. Must never run a model
other than the one that was asked for.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, Literal

import structlog

from services.inference.models.connection import Connection, check_request
from services.inference.models.failures import error_line
from services.inference.models.port import End, Model, ModelFailure, ModelRequest, Patience, Piece
from services.inference.models.reading import UsageKey, read_count, read_member, read_object, read_text, read_usage
from services.inference.models.sampling import sampling
from services.inference.models.silence import Silence
from services.inference.models.sse import Event, EventReader

log = structlog.get_logger(__name__)

# After finish_reason only the usage and [DONE] are missing: nobody waits a minute for those.
AFTER_FINISH_S = 2.0
# Where servers tell the window of one request: llama.cpp (in meta), vLLM, OpenRouter, Groq.
WINDOW_KEYS = ("n_ctx", "max_model_len", "context_length", "context_window")


class OpenAI:
    """A model server (port.ModelServer) on OpenAI's wire. base_url ends in /v1, or wherever the server has its API."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self._connection = Connection(base_url, api_key)
        self._names: frozenset[str] = frozenset()
        self._looked_for_ollama = False

    async def models(self) -> list[Model]:
        """The models that the server lists, with the window where it tells; aliases are names of their own."""
        models = [Model(name=name, window=_window(entry)) for name, entry in await self._list()]
        await self._warn_of_ollama()
        return models

    async def answer(self, request: ModelRequest, patience: Patience) -> AsyncGenerator[Piece | End]:
        check_request(request)
        silence = Silence(patience)
        await self._check_name(request.model)
        reader = ChunkReader()
        async with aclosing(self._connection.lines("/chat/completions", chat_body(request), silence)) as lines:
            try:
                async for line in lines:
                    for piece in reader.read(line):
                        yield piece
                        silence.begin_again()
                    if reader.done:
                        break
                    if reader.finished:
                        silence.at_most(AFTER_FINISH_S)
                if reader.finished is None:
                    raise ModelFailure("model_cut", "[DONE] without a finish_reason", again=not silence.broken)
            except ModelFailure:
                # Whatever happens after it, finish_reason was the server's word that the answer is whole.
                if reader.finished is None:
                    self._names = frozenset()  # it may be another server that comes back
                    raise
        yield End(end=reader.finished, usage=reader.usage)

    async def aclose(self) -> None:
        await self._connection.aclose()

    async def _check_name(self, model: str) -> None:
        """llama.cpp serves an unknown name with the model it has (measured), so the list is asked first, and kept."""
        if model not in self._names:
            self._names = frozenset(name for name, _ in await self._list())
        if model not in self._names:
            # It was offered to history a moment ago, and lists flap: only a server's own 404 is its last word.
            raise ModelFailure("model_not_found", "the server does not list the model", again=True)

    async def _list(self) -> list[tuple[str, dict[str, Any]]]:
        """(name, entry) of GET /models."""
        entries = (await self._connection.ask("/models")).get("data") or []
        if not isinstance(entries, list):
            raise ModelFailure("model_error", "no list of models", again=True)
        return [(name, entry) for entry in entries if isinstance(entry, dict) for name in _names(entry)]

    async def _warn_of_ollama(self) -> None:
        """Say once if this is an Ollama's /v1: the native adapter is the right one for it."""
        if self._looked_for_ollama:
            return
        self._looked_for_ollama = True
        if await answers_as_ollama(self._connection.base_url):
            log.warning(
                "openai_url_is_ollama", hint="set CHATLOG_OLLAMA_URL instead: its /v1 loses errors in mid-stream"
            )


async def answers_as_ollama(base_url: str) -> bool:
    """Whether an Ollama answers at the root above this /v1. It is asked without the key: the root was not given one."""
    root = Connection(base_url.removesuffix("/v1"))
    try:
        return bool(read_text(await root.ask("/api/version"), "version"))
    except ModelFailure:
        return False
    finally:
        await root.aclose()


def chat_body(request: ModelRequest) -> dict[str, Any]:
    """The body of POST /chat/completions.

    top_k is not OpenAI's own, but llama.cpp, vLLM and others take it. It is sent where the sender set it: a server that
    refuses it says so, while an option left out in silence would be a lie. max_tokens and not max_completion_tokens:
    that is the name that they all know.
    """
    return {
        "model": request.model,
        "messages": [{"role": role, "content": content} for role, content in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **sampling(request, max_tokens="max_tokens"),
    }


class ChunkReader:
    """Reads the events of one answer and keeps what they say of its end."""

    def __init__(self) -> None:
        self.finished: Literal["stop", "length"] | None = None
        self.done = False  # [DONE] has come
        self.usage: dict[UsageKey, int] = {}
        self._events = EventReader()

    def read(self, line: bytes) -> Iterator[Piece]:
        """The piece that this line completes, if any."""
        event = self._events.read(line)
        if event is None:
            return
        if event.data.strip() == b"[DONE]":
            self.done = True
            return
        chunk = _chunk(event)
        self._keep_usage(chunk)
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return  # the usage's chunk has no choice; neither do some servers' first ones
        piece = _piece(read_member(choices[0], "delta"))
        if piece.thinking or piece.text:
            yield piece
        if reason := choices[0].get("finish_reason"):
            self.finished = _finish(reason)

    def _keep_usage(self, chunk: dict[str, Any]) -> None:
        usage = read_member(chunk, "usage")
        details = read_member(usage, "prompt_tokens_details")
        self.usage |= read_usage(
            ("prompt_tokens", usage, "prompt_tokens"),
            ("completion_tokens", usage, "completion_tokens"),
            ("cached_tokens", details, "cached_tokens"),
        )


def _chunk(event: Event) -> dict[str, Any]:
    """The event's JSON, unless it is an error: under `error`, as an event named so, or as vLLM's object `error`."""
    chunk = read_object(event.data)
    if event.name == "error" or chunk.get("error") or chunk.get("object") == "error":
        raise error_line(chunk.get("error") or chunk)
    return chunk


def _piece(delta: dict[str, Any]) -> Piece:
    """Reasoning has two names; vLLM sends both with the same text for a while, so the first one counts."""
    thinking = read_text(delta, "reasoning_content") or read_text(delta, "reasoning")
    return Piece(thinking=thinking, text=read_text(delta, "content"))


def _finish(reason: object) -> Literal["stop", "length"]:
    """stop and length are the two words for a whole answer."""
    if reason == "stop":
        return "stop"
    if reason == "length":
        return "length"
    if reason == "content_filter":
        raise ModelFailure("model_refused", "the server's content filter ended the answer")
    # tool_calls (no tool was offered), abort, and words that nobody knows yet: none of them says that it is whole.
    raise ModelFailure("model_cut", "finished for a reason that is neither stop nor length")


def _window(entry: dict[str, Any]) -> int | None:
    places = {**entry, "n_ctx": read_member(entry, "meta").get("n_ctx")}
    counts = (read_count(places, key) for key in WINDOW_KEYS)
    return next((count for count in counts if count), None)


def _names(entry: dict[str, Any]) -> list[str]:
    """The entry's id and its other names (llama.cpp's aliases), each once."""
    aliases = entry.get("aliases")
    found = [entry.get("id"), *(aliases if isinstance(aliases, list) else [])]
    return list(dict.fromkeys(name for name in found if isinstance(name, str) and name))
