"""Beside the road: planned faults become what happens on the connection or to the runner.

It owns hangs, stalls, resets, cuts and status rows, for both wires. What needs a wire's own words (an error line, a
clean end) it hands back. It must never decide whom a fault meets: that is planned in `faults`.
"""

from __future__ import annotations

import asyncio
import json
from email.utils import formatdate
from typing import Final

from services.standin.faults import STATUS_ROWS, Fault, Plan, StatusRow, Wire
from services.standin.model import ModelSpec
from services.standin.scheduler import Scheduler
from services.standin.wire import Reply

FOREVER_S: Final = 86_400.0
"""A stall without an end: longer than any test, yet a timer that ends."""


class Struck(Exception):
    """The answer is over: a fault has ended it. `kind` is what the report shows."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Strikes:
    """The faults of one request, each carried out at its moment."""

    def __init__(self, plan: Plan, reply: Reply, scheduler: Scheduler) -> None:
        self._plan = plan
        self._reply = reply
        self._scheduler = scheduler
        if split := plan.first("split"):
            reply.split_bytes = split.size
            reply.split_pause_s = split.seconds or 0.0

    async def before_headers(self) -> None:
        """Everything that comes instead of, or delays, the first header."""
        if hang := self._plan.first("hang"):
            await asyncio.sleep(FOREVER_S if hang.seconds is None else hang.seconds)
        if status := self._plan.first("status"):
            await self._status(status)
        for fault in self._plan.strikes_at(None):
            await self._strike(fault, b"", None)

    async def at(self, pieces: int, next_bytes: bytes, spec: ModelSpec) -> Fault | None:
        """What strikes after so many pieces; the fault, where the wire has to put it in its own words."""
        if pieces and (drip := self._plan.first("drip")):
            await asyncio.sleep(drip.seconds or 0.0)
        for fault in self._plan.strikes_at(pieces):
            if fault.kind in ("error_line", "clean_end"):
                return fault
            await self._strike(fault, next_bytes, spec)
        return None

    async def _strike(self, fault: Fault, next_bytes: bytes, spec: ModelSpec | None) -> None:
        if fault.kind == "stall":
            await asyncio.sleep(FOREVER_S if fault.seconds is None else fault.seconds)
        elif fault.kind == "reset":
            self._reply.reset()
            raise Struck("reset")
        elif fault.kind == "cut":
            await self._reply.cut(next_bytes)
            raise Struck("cut")
        elif spec is not None and (runner := self._scheduler.find(spec)):
            if fault.kind == "kill_runner":
                runner.kill()
            else:
                runner.running.clear()
            await runner.alive()

    async def _status(self, fault: Fault) -> None:
        row = STATUS_ROWS[fault.row] if fault.row else StatusRow(fault.status or 500, "")
        text, content_type = row.text, row.content_type
        if fault.body is not None:
            text = fault.body
        elif content_type is None:
            text = error_json(self._plan.wire, row)
        headers = {"Content-Type": "application/json" if content_type is None else content_type, **fault.headers}
        headers = {name: value for name, value in {**headers, "Date": http_date()}.items() if value}
        await self._reply.whole(fault.status or row.status, list(headers.items()), text.encode())
        raise Struck("status")


def error_json(wire: Wire, row: StatusRow) -> str:
    """A row's message in the words of its wire: Ollama has a string there, the others an object."""
    if wire == "ollama":
        return json.dumps({"error": row.text})
    return json.dumps({"error": {"code": row.status, "message": row.text, "type": "standin_fault"}})


def http_date() -> str:
    return formatdate(usegmt=True)
