"""Step 12, inference/models: how long a silent model server is believed: first-token time, then time between tokens.

Owns the one deadline of a running answer. The HTTP client's own read timeout is off: it begins again with every byte,
so that comment lines or empty chunks would keep a wedged server alive for ever. Must never count the time in which our
own side was busy with a piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from services.inference.models.port import ModelFailure, Patience

T = TypeVar("T")


class Silence:
    """The silence of one answer's server, on the loop's monotonic clock."""

    def __init__(self, patience: Patience) -> None:
        self._loop = asyncio.get_running_loop()
        self._between_tokens_s = patience.between_tokens_s
        self._deadline = self._loop.time() + patience.first_token_s
        self.broken = False  # whether a piece has come

    def begin_again(self) -> None:
        """A piece came and has been dealt with: from here on the server's next silence counts."""
        self.broken = True
        self._deadline = self._loop.time() + self._between_tokens_s

    def at_most(self, seconds: float) -> None:
        """Wait no longer than this for what is left, however patient the answer itself was."""
        self._deadline = min(self._deadline, self._loop.time() + seconds)

    async def within(self, awaitable: Awaitable[T]) -> T:
        """What awaitable gives, if that comes in time. Raises ModelFailure model_stalled."""
        try:
            async with asyncio.timeout_at(self._deadline) as timeout:
                return await awaitable
        except TimeoutError:
            if not timeout.expired():
                raise
            waited_for = "between two pieces" if self.broken else "before the first piece"
            raise ModelFailure("model_stalled", f"nothing came {waited_for}") from None
