"""What a careful client makes of its frames (pure): the same rules that docs/clients.md gives to every client.

Owns the check of P4 and P5 as a client sees them: versions without a gap, tokens in order, nothing after the end.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

TERMINALS = ("answer_completed", "answer_failed", "answer_cancelled")


@dataclass
class Answer:
    """One turn as the client shows it."""

    attempt: int = 0
    index: int = 0
    text: str = ""
    thinking: str = ""
    ended_by: str | None = None
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class SessionView:
    """One session, folded from its frames. broken: each rule that a frame broke."""

    session_id: str
    epoch: str | None = None
    version: int = 0
    attached: bool = False
    answers: dict[str, Answer] = field(default_factory=dict)
    event_frames: list[str] = field(default_factory=list)
    token_frames: dict[str, list[str]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    places: dict[str, list[int]] = field(default_factory=dict)  # by turn: how many it was told come before it

    def take(self, raw: str) -> dict[str, Any]:
        """Fold one frame of this session."""
        frame: dict[str, Any] = json.loads(raw)
        match frame["type"]:
            case "attached":
                self.epoch, self.attached = frame["epoch"], True
                self._check(self.version >= frame["version"], f"attached at {frame['version']}, at {self.version}")
            case "event":
                self._take_event(frame, raw)
            case "token":
                self._take_token(frame, raw)
            case "answer_so_far":
                self._take_so_far(frame)
            case "turn_queued":
                self._check(not self.ended(frame["turn_id"]), "a place in the queue after the end")
                self.places.setdefault(frame["turn_id"], []).append(frame["ahead"])
            case "resync":
                self.version, self.answers, self.attached = 0, {}, False
        return frame

    def ended(self, turn_id: str) -> bool:
        answer = self.answers.get(turn_id)
        return answer is not None and answer.ended_by is not None

    def _take_event(self, frame: dict[str, Any], raw: str) -> None:
        self._check(frame["version"] == self.version + 1, f"version {frame['version']} after {self.version}")
        self.version = frame["version"]
        self.event_frames.append(raw)
        event = frame["event"]
        self.order.append(event["type"])
        answer = self.answers.setdefault(event.get("turn_id", ""), Answer())
        if event["type"] == "answer_started":
            self._check(answer.ended_by is None, "answer_started after the end")
            answer.attempt, answer.index, answer.text, answer.thinking = event["data"]["attempt"], 0, "", ""
        elif event["type"] in TERMINALS:
            self._check(answer.ended_by is None, "two ends")
            answer.ended_by, answer.data = event["type"], event["data"]
            answer.text = event["data"].get("text", "")

    def _take_token(self, frame: dict[str, Any], raw: str) -> None:
        answer = self.answers.setdefault(frame["turn_id"], Answer())
        self.order.append("token")
        self.token_frames.setdefault(frame["turn_id"], []).append(raw)
        self._check(answer.ended_by is None, "a token after the end")
        self._check(frame["attempt"] == answer.attempt, f"attempt {frame['attempt']}, started {answer.attempt}")
        self._check(frame["index"] == answer.index + 1, f"index {frame['index']} after {answer.index}")
        answer.index = frame["index"]
        answer.text += frame["text"]
        answer.thinking += frame.get("thinking", "")

    def _take_so_far(self, frame: dict[str, Any]) -> None:
        answer = self.answers.setdefault(frame["turn_id"], Answer())
        self._check(answer.ended_by is None, "answer_so_far after the end")
        self._check(frame["attempt"] == answer.attempt, f"attempt {frame['attempt']}, started {answer.attempt}")
        self._check(frame["index"] >= answer.index, f"answer_so_far goes back to {frame['index']}")
        answer.index, answer.text, answer.thinking = frame["index"], frame["text"], frame["thinking"]

    def _check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.broken.append(otherwise)
