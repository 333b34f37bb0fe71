"""Beside the road (core): which request meets which fault, which script, and what each fault is.

It owns the vocabulary of the control plane and the counting (the nth request of a model, a wire or a marker in the
prompt). It must never act: the wires and the generation do what is planned here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Wire = Literal["ollama", "openai"]
Route = Literal["chat", "root", "version", "tags", "ps", "show", "models"]
FaultKind = Literal[
    "status", "hang", "error_line", "clean_end", "reset", "cut", "stall", "drip", "split", "dialect",
    "kill_runner", "stop_runner", "leak_slot", "unlisted",
]  # fmt: skip

STRIKES: Final = ("error_line", "clean_end", "reset", "cut", "stall", "kill_runner", "stop_runner")
"""Faults that strike at a point of the answer: `after` so many pieces."""

LISTS: Final = ("tags", "models")
"""Routes that list models."""

BUSY: Final = "server busy, please try again.  maximum pending requests exceeded"
RUNNER_LOST: Final = "an error was encountered while running the model: unexpected EOF"

NESTED: Final = (
    '{"error":{"code":400,"message":"request (42947 tokens) exceeds the available context size (8192 tokens), try '
    'increasing it","type":"exceed_context_size_error","n_prompt_tokens":42947,"n_ctx":8192}}'
)


@dataclass(frozen=True)
class StatusRow:
    """An answer instead of a stream. `text` is an error's message in the wire's own JSON, unless a type is given."""

    status: int
    text: str
    content_type: str | None = None


STATUS_ROWS: Final[dict[str, StatusRow]] = {
    "bad_request": StatusRow(400, "invalid model name"),
    "too_long": StatusRow(400, NESTED),
    "unauthorized": StatusRow(401, "unauthorized"),
    "forbidden": StatusRow(403, "", ""),
    "not_found": StatusRow(404, "model 'gone' not found"),
    "no_route": StatusRow(404, "404 page not found", "text/plain"),
    "no_method": StatusRow(405, "405 method not allowed", "text/plain"),
    "too_many": StatusRow(429, "rate limit exceeded"),
    "canceled": StatusRow(499, "request canceled"),
    "runner_stopped": StatusRow(500, "model runner has unexpectedly stopped, this may be due to resource limitations"),
    "runner_exit": StatusRow(500, "llama-server process has terminated: exit status 2"),
    "load_timeout": StatusRow(500, "timed out waiting for llama-server to start - "),
    "panic": StatusRow(500, "", ""),
    "proxy_502": StatusRow(502, "<html><body><h1>502 Bad Gateway</h1></body></html>", "text/html"),
    "busy": StatusRow(503, BUSY),
    "proxy_504": StatusRow(504, "<html><body><h1>504 Gateway Time-out</h1></body></html>", "text/html"),
}
"""Answers before a stream, by name, as an Ollama, or a proxy before one, sends them."""


class Dialect(BaseModel):
    """How a server that speaks OpenAI's API differs from the next one; the defaults are llama.cpp's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    headers: Literal["slot", "arrival", "first_piece"] = "slot"
    reasoning: Literal["reasoning_content", "reasoning"] = "reasoning_content"
    usage: Literal["asked", "always", "never"] = "asked"
    finish_reason: bool = True
    done_marker: bool = True
    tail: Literal["none", "empty_choices", "no_choices"] = "none"
    comment: str | None = None
    unknown_model: Literal["refuse", "serve"] = "refuse"
    window_told: Literal["meta", "max_model_len", "nowhere"] = "meta"


class Match(BaseModel):
    """Whom it meets: from the nth request that fits, so many times (None: always)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wire: Wire | None = None
    route: Route = "chat"
    model: str | None = None
    marker: str | None = None
    nth: Annotated[int, Field(ge=1)] = 1
    times: Annotated[int, Field(ge=1)] | None = 1

    def fits(self, asked: Asked) -> bool:
        return (
            self.route == asked.route
            and self.wire in (None, asked.wire)
            and self.model in (None, asked.model)
            and (self.marker is None or self.marker in asked.prompt)
        )


class Fault(Match):
    """One fault. `after`: pieces sent before it strikes; None: before any header."""

    kind: FaultKind
    after: Annotated[int, Field(ge=0)] | None = 0
    seconds: Annotated[float, Field(ge=0)] | None = None
    row: str | None = None
    status: Annotated[int, Field(ge=200, le=599)] | None = None
    headers: dict[str, str] = {}
    body: str | None = None
    text: str = RUNNER_LOST
    form: Literal["object", "string"] = "object"
    size: Annotated[int, Field(ge=1)] = 1
    dialect: Dialect | None = None
    unlisted: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Fault:
        if self.kind == "status" and self.row is None and self.status is None:
            raise ValueError("a status fault needs a row or a status")
        if self.row is not None and self.row not in STATUS_ROWS:
            raise ValueError(f"unknown row {self.row}; known: {', '.join(STATUS_ROWS)}")
        if self.kind == "dialect" and self.dialect is None:
            raise ValueError("a dialect fault needs its dialect")
        if (self.kind == "unlisted") != bool(self.unlisted) or (self.unlisted and self.route not in LISTS):
            raise ValueError(f"unlisted names models, and meets one of the routes {', '.join(LISTS)}")
        if self.after is None and self.kind in ("error_line", "clean_end"):
            raise ValueError(f"{self.kind} comes after the headers")
        return self


class Script(Match):
    """An answer told word for word: each string is one piece, and one token."""

    pieces: tuple[str, ...] = ()
    thinking: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A request as faults see it."""

    wire: Wire
    route: Route
    model: str = ""
    prompt: str = ""


@dataclass(frozen=True)
class Plan:
    """What one request will meet."""

    wire: Wire
    faults: tuple[Fault, ...] = ()
    script: Script | None = None

    def first(self, kind: FaultKind) -> Fault | None:
        return next((fault for fault in self.faults if fault.kind == kind), None)

    @property
    def dialect(self) -> Dialect:
        fault = self.first("dialect")
        return fault.dialect if fault and fault.dialect else Dialect()

    @property
    def unlisted(self) -> list[str]:
        """The models that this request's list leaves out."""
        return [name for fault in self.faults for name in fault.unlisted]

    def strikes_at(self, pieces: int | None) -> Sequence[Fault]:
        """The faults that strike now: after so many pieces, or (None) before any header."""
        return [fault for fault in self.faults if fault.kind in STRIKES and fault.after == pieces]


class FaultBook:
    """All that is planned, in the order in which it was asked for, with its counts."""

    def __init__(self) -> None:
        self._faults: list[tuple[Fault, _Count]] = []
        self._scripts: list[tuple[Script, _Count]] = []

    def add(self, fault: Fault) -> None:
        self._faults.append((fault, _Count()))

    def add_script(self, script: Script) -> None:
        self._scripts.append((script, _Count()))

    def clear(self) -> None:
        self._faults.clear()
        self._scripts.clear()

    def plan(self, asked: Asked) -> Plan:
        """What this request meets; asking counts it, so ask once a request."""
        faults = tuple(fault for fault, count in self._faults if fault.fits(asked) and count.meets(fault))
        scripts = [script for script, count in self._scripts if script.fits(asked) and count.meets(script)]
        return Plan(asked.wire, faults, scripts[0] if scripts else None)


@dataclass
class _Count:
    seen: int = 0
    met: int = 0

    def meets(self, match: Match) -> bool:
        self.seen += 1
        due = self.seen >= match.nth and (match.times is None or self.met < match.times)
        self.met += due
        return due
