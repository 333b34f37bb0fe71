"""What came of a request to a model server, in the words that all of them share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import groupby

from services.inference.models.factory import Kind, open_model_server
from services.inference.models.port import End, ModelFailure, ModelRequest, ModelServer, Patience, Piece

PATIENT = Patience(first_token_s=30, between_tokens_s=30)
HASTY = Patience(first_token_s=0.8, between_tokens_s=0.8)


@dataclass(frozen=True)
class Subject:
    """One adapter with one server to talk to."""

    kind: Kind
    url: str
    api_key: str | None = None

    def open(self, num_ctx: int | None = None) -> ModelServer:
        return open_model_server(self.kind, self.url, self.api_key, num_ctx)


@dataclass
class Heard:
    """What came of one request: the pieces, then the end or the failure."""

    pieces: list[Piece] = field(default_factory=list)
    end: End | None = None
    failure: ModelFailure | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def order(self) -> list[str]:
        """['thinking', 'text'], however many pieces each has."""
        parts = [part for piece in self.pieces for part in ("thinking", "text") if getattr(piece, part)]
        return [part for part, _ in groupby(parts)]

    @property
    def verdict(self) -> tuple[str, bool]:
        """The end, or the failure's code; and whether the same request may be sent again."""
        if self.failure is not None:
            return self.failure.code, self.failure.again
        assert self.end is not None, "the answer just stopped"
        return self.end.end, False


async def ask(subject: Subject, request: ModelRequest, patience: Patience = PATIENT) -> Heard:
    """Everything that one answer gives, on a connection of its own."""
    server = subject.open()
    try:
        return await rest_of(server.answer(request, patience))
    finally:
        await server.aclose()


async def rest_of(items: AsyncIterator[Piece | End]) -> Heard:
    """What is still to come of an answer; nothing may follow the end."""
    heard = Heard()
    try:
        async for item in items:
            assert heard.end is None, "something follows the end"
            if isinstance(item, End):
                heard.end = item
            else:
                heard.pieces.append(item)
    except ModelFailure as failure:
        heard.failure = failure
    return heard
