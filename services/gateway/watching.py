"""Step 13, gateway/watching: the two ways in which a door waits for one answer: patiently, and to its end.

Owns the patience: history may be restarting while a client waits for an answer that will come. Must never end an
answer itself: only a terminal event does.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from services.gateway.attach import ResyncReason, Watch
from services.gateway.auth import Caller
from services.gateway.feeds import Feeds
from services.gateway.intake import Refused
from services.gateway.queries import HistoryAway
from services.gateway.relay import Step

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


async def attach_within(feeds: Feeds, watch: Watch, patience_s: float) -> None:
    """Bring a started watch up to date; history may be away for so long. Raises HistoryAway, Refused."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_s
    pause = FIRST_PAUSE_S
    while True:
        try:
            await feeds.attach(watch)
            return
        except HistoryAway:
            if loop.time() + pause > deadline or watch.ended:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


class AnswerViewer:
    """Waits for the terminal event of one turn and drops everything else. Raises HistoryAway where it cannot come here
    any more, and Refused where the key is no longer valid."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.turn_id: str | None = None
        self.terminal: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def deliver(self, _watch: Watch, step: Step, *, counted: bool) -> None:
        if step.frame.is_terminal and step.frame.turn_id == self.turn_id and not self.terminal.done():
            self.terminal.set_result(json.loads(step.frame.raw))

    def attached(self, _watch: Watch, _version: int) -> None:
        """Nobody is to be told."""

    def resync(self, _watch: Watch, reason: ResyncReason) -> None:
        self._fail(HistoryAway(f"another log: {reason}"))

    async def drained(self) -> bool:
        return True

    async def drain(self) -> None:
        """The answer goes on without this gateway: its client is told where to ask for it."""
        self._fail(HistoryAway("this gateway goes"))

    def expel(self) -> None:
        self._fail(Refused("unauthorized"))

    def _fail(self, error: Exception) -> None:
        if not self.terminal.done():
            self.terminal.set_exception(error)
