"""What really happened, as nobody in the simulated world can see it: what each attempt's run let out, piece by piece.

Owns the comparison of what a client shows with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from contracts.frames import Token
from tests.folding import SessionView


@dataclass
class Truth:
    """pieces: of each (turn, attempt), in the order of their indexes."""

    pieces: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    runs: dict[tuple[str, int], str] = field(default_factory=dict)

    def said(self, token: Token, run_id: str) -> None:
        """A worker lets out a token: an attempt is one run's alone, and numbers its tokens one by one."""
        place = token.turn_id, token.attempt
        assert self.runs.setdefault(place, run_id) == run_id, f"two runs let out attempt {token.attempt}"
        pieces = self.pieces.setdefault(place, [])
        assert token.index == len(pieces) + 1
        pieces.append(token.text)

    def check(self, view: SessionView) -> None:
        """What a client shows of an answer in flight is what its attempt has said, up to some piece."""
        assert not view.broken, view.broken
        for turn_id, answer in view.answers.items():
            if answer.ended_by is None and answer.attempt:
                said = self.pieces.get((turn_id, answer.attempt), [])
                assert answer.text == "".join(said[: answer.index]), (turn_id, answer)
