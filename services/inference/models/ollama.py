"""Step 12, inference/models/ollama: Ollama's native API, never its /v1, which loses errors in mid-stream.

Owns the translation of a request into POST /api/chat and of its NDJSON lines into pieces and the end. An answer is
whole only if Ollama says so: done:true with a known reason. Must never let Ollama shorten a conversation in silence.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from services.inference.models.connection import Connection, check_request
from services.inference.models.failures import error_line
from services.inference.models.port import End, Model, ModelFailure, ModelRequest, Patience, Piece
from services.inference.models.reading import read_count, read_member, read_object, read_text, read_usage
from services.inference.models.sampling import sampling
from services.inference.models.silence import Silence


class Ollama:
    """A model server (port.ModelServer) on Ollama's own wire. num_ctx: None leaves the window to Ollama."""

    def __init__(self, base_url: str, api_key: str | None = None, num_ctx: int | None = None) -> None:
        self._connection = Connection(base_url, api_key)
        self._num_ctx = num_ctx

    async def models(self) -> list[Model]:
        """All models that are there; the window of those that are loaded, the only ones that Ollama tells it of."""
        tags = await self._connection.ask("/api/tags")
        loaded = await self._connection.ask("/api/ps")
        windows = {full_name(name): read_count(model, "context_length") for name, model in _named(loaded)}
        return [
            Model(name=name, window=windows.get(full_name(name)), digest=read_text(model, "digest") or None)
            for name, model in _named(tags)
        ]

    async def answer(self, request: ModelRequest, patience: Patience) -> AsyncGenerator[Piece | End]:
        check_request(request)
        silence = Silence(patience)
        body = chat_body(request, self._num_ctx)
        async with aclosing(self._connection.lines("/api/chat", body, silence)) as lines:
            async for line in lines:
                for item in read_line(line):
                    yield item
                    if isinstance(item, End):
                        return
                    silence.begin_again()

    async def aclose(self) -> None:
        await self._connection.aclose()


def full_name(name: str) -> str:
    """The name as Ollama compares it: the tag `latest` may be left out, and case does not count."""
    lowered = name.lower()
    return lowered if ":" in lowered.rpartition("/")[2] else f"{lowered}:latest"


def chat_body(request: ModelRequest, num_ctx: int | None) -> dict[str, Any]:
    """The body of POST /api/chat. num_ctx is in every request or in none: each change reloads the model."""
    window = {} if num_ctx is None else {"num_ctx": num_ctx}
    return {
        "model": request.model,
        "messages": [{"role": role, "content": content} for role, content in request.messages],
        "stream": True,
        "truncate": False,  # else messages are dropped from the front without a word (recorded)
        "options": {**window, **sampling(request, max_tokens="num_predict")},
    }


def read_line(line: bytes) -> Iterator[Piece | End]:
    """What one NDJSON line says: a piece, the end, both (the last line may carry text), or nothing."""
    if not line.strip():
        return
    chunk = read_object(line)
    if chunk.get("error"):
        raise error_line(chunk["error"])
    message = read_member(chunk, "message")
    piece = Piece(thinking=read_text(message, "thinking"), text=read_text(message, "content"))
    if piece.thinking or piece.text:
        yield piece
    if chunk.get("done") is True:
        yield _end(chunk)


def _end(chunk: dict[str, Any]) -> End:
    reason = chunk.get("done_reason")
    if reason not in ("stop", "length"):
        # Ollama leaves the reason out when its runner hung up, and `load` answers no conversation: neither is whole.
        raise ModelFailure("model_cut", "done without a known reason")
    usage = read_usage(("prompt_tokens", chunk, "prompt_eval_count"), ("completion_tokens", chunk, "eval_count"))
    return End(end=reason, usage=usage)


def _named(listing: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(name, model) of each entry of /api/tags or /api/ps."""
    models = listing.get("models") or []
    if not isinstance(models, list):
        raise ModelFailure("model_error", "no list of models", again=True)
    return [(read_text(model, "name"), model) for model in models if isinstance(model, dict) and model.get("name")]
