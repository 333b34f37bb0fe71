"""Beside the road (core): an answer token by token: its steps, what goes out for each token, and why it ends.

It owns limit, stop strings and the repeat guard, over any source of pieces (the stand-in's own or a script's). It
must never wait or send.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from services.standin.model import Piece, RepeatGuard, StopStrings

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Admitted:
    """The request has its slot, and the prompt is about to be read."""


@dataclass(frozen=True)
class Finished:
    """The end. `reason` None: the model broke off without a word (the repeat guard)."""

    reason: Reason | None
    prompt_tokens: int
    cached_tokens: int
    tokens: int
    load_ns: int
    prefill_ns: int
    decode_ns: int
    total_ns: int


Step = Admitted | Piece | Finished


class Telling:
    """Iterate it once: a piece, or None for a token that is withheld. Then `reason` and `tokens` are final; no reason
    means that the guard broke the answer off."""

    def __init__(self, source: Iterator[Piece], *, limit: int, stops: Sequence[str], guarded: bool) -> None:
        self._source = source
        self._limit = limit
        self._stops = StopStrings(stops)
        self._guard = RepeatGuard() if guarded else None
        self.tokens = 0
        self.reason: Reason | None = None

    def __iter__(self) -> Iterator[Piece | None]:
        for piece in self._source:
            self.tokens += 1
            if self._guard and self._guard.trips(piece.text):
                return
            yield self._shown(piece)
            if self._stops.hit:
                self.reason = "stop"
                return
            if self.tokens >= self._limit:
                yield from self._rest()
                self.reason = "length"
                return
        self.tokens += 1  # the token that says that the model has ended
        yield from self._rest()
        self.reason = "stop"

    def _shown(self, piece: Piece) -> Piece | None:
        if piece.thinking:
            return piece
        text = self._stops.feed(piece.text)
        return Piece(text) if text else None

    def _rest(self) -> Iterator[Piece]:
        if rest := self._stops.rest():
            yield Piece(rest)
