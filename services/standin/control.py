"""Beside the road: the control plane, on a port of its own: faults, scripts, speed, runners, and the report.

It owns JSON over HTTP for tests and benchmarks. It must never be reachable from a web page: a foreign Host, and any
Origin at all, is answered 403.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from services.standin.faults import Fault, FaultBook, Script
from services.standin.generation import Generation, Speed
from services.standin.hosts import host_allowed
from services.standin.model import Catalogue
from services.standin.wire import Reply, Request

FAULTS: TypeAdapter[list[Fault]] = TypeAdapter(list[Fault])


class RunnerAction(BaseModel):
    """What happens to the process that runs a model: it dies, it hangs, it goes on, it is unloaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    action: Literal["kill", "stop", "continue", "unload"]


class ControlDoor:
    """Answers one request of the control plane."""

    def __init__(self, catalogue: Catalogue, generation: Generation, book: FaultBook) -> None:
        self._catalogue = catalogue
        self._generation = generation
        self._book = book
        self._posts: dict[str, Callable[[Any], dict[str, Any]]] = {
            "/faults": self._faults,
            "/script": self._script,
            "/speed": self._speed,
            "/runner": self._runner,
            "/reset": self._reset,
        }

    async def handle(self, request: Request, reply: Reply) -> None:
        if not host_allowed(request.headers.get("host")) or "origin" in request.headers:
            await reply.whole(403, [])
            return
        try:
            status, answer = 200, self._answer(request)
        except LookupError as error:
            status, answer = 404, {"error": str(error)}
        except (ValidationError, ValueError) as error:
            status, answer = 400, {"error": str(error)}
        await reply.whole(status, [("Content-Type", "application/json")], json.dumps(answer).encode())

    def _answer(self, request: Request) -> dict[str, Any]:
        if request.method == "GET" and request.path == "/report":
            loads = [asdict(load) for load in self._generation.scheduler.loads]
            return {**self._generation.report.view(with_messages="messages" in request.query), "loads": loads}
        if request.method == "POST" and request.path in self._posts:
            return self._posts[request.path](json.loads(request.body or b"{}"))
        raise LookupError(f"{request.method} {request.path}: GET /report, POST {' '.join(self._posts)}")

    def _faults(self, asked: Any) -> dict[str, Any]:
        faults = FAULTS.validate_python(asked if isinstance(asked, list) else [asked])
        for fault in faults:
            self._book.add(fault)
        return {"added": len(faults)}

    def _script(self, asked: Any) -> dict[str, Any]:
        self._book.add_script(Script.model_validate(asked))
        return {"added": 1}

    def _speed(self, asked: Any) -> dict[str, Any]:
        if not isinstance(asked, dict):
            raise ValueError("speed is an object")
        merged = {**self._generation.speed.model_dump(), **asked}
        self._generation.speed = Speed.model_validate(merged)
        return self._generation.speed.model_dump()

    def _runner(self, asked: Any) -> dict[str, Any]:
        action = RunnerAction.model_validate(asked)
        spec = self._catalogue.find(action.model)
        runner = self._generation.scheduler.find(spec) if spec else None
        if spec is None or runner is None:
            raise LookupError(f"{action.model} is not loaded")
        if action.action == "kill":
            runner.kill()
        elif action.action == "stop":
            runner.running.clear()
        elif action.action == "continue":
            runner.running.set()
        else:
            self._generation.scheduler.unload(spec)
        return {"model": spec.full_name, "action": action.action}

    def _reset(self, _asked: Any) -> dict[str, Any]:
        """No faults, no scripts, an empty report. What is loaded, in flight or slow stays so."""
        self._book.clear()
        self._generation.report.clear()
        self._generation.scheduler.loads.clear()
        return {}
