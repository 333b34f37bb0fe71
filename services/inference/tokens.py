"""Step 12, inference/tokens (core): the model's pieces -> numbered frames, and the whole answer so far.

Owns the numbering: what is waiting when the sender comes round is one frame with one index, so that a fast model costs
few frames and a slow one waits for nothing. Must never do I/O, or give out a piece under two indexes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from contracts.base import without_surrogates
from contracts.frames import AnswerSoFar, Token


class Answer:
    """One attempt's answer: what was given out in numbered frames, and what waits for the next one."""

    def __init__(self, session_id: str, turn_id: str, frame_chars: int) -> None:
        self._session_id = session_id
        self._turn_id = turn_id
        self._frame_chars = frame_chars
        self._thinking: list[str] = []
        self._text: list[str] = []
        self._waiting: list[tuple[str, str]] = []
        self.index = 0
        self.chars = 0

    @property
    def begun(self) -> bool:
        """Whether the model has said anything."""
        return self.chars > 0

    @property
    def thinking(self) -> str:
        """All that was given out so far."""
        return "".join(self._thinking)

    @property
    def text(self) -> str:
        """All that was given out so far."""
        return "".join(self._text)

    def add(self, thinking: str, text: str) -> None:
        """What the model said since the last piece; thinking came before text."""
        self.chars += len(thinking) + len(text)
        self._waiting.append((without_surrogates(thinking), without_surrogates(text)))

    def give_out(self, attempt: int) -> list[Token]:
        """What waits, as frames with the next indexes. Whoever calls sends them, in this order."""
        waiting, self._waiting = self._waiting, []
        return [self._numbered(attempt, *frame) for frame in _merged(waiting, self._frame_chars)]

    def so_far(self, attempt: int) -> AnswerSoFar:
        """Exactly what the frames up to index said, so that the next frame continues it."""
        return AnswerSoFar(
            session_id=self._session_id,
            turn_id=self._turn_id,
            attempt=attempt,
            index=self.index,
            thinking=self.thinking,
            text=self.text,
        )

    def _numbered(self, attempt: int, thinking: str, text: str) -> Token:
        self.index += 1
        self._thinking.append(thinking)
        self._text.append(text)
        frame = Token(session_id=self._session_id, turn_id=self._turn_id, attempt=attempt, index=self.index, text=text)
        # Only what is set is written: a frame without thinking does not name it.
        return frame.model_copy(update={"thinking": thinking}) if thinking else frame


def _merged(pieces: Iterable[tuple[str, str]], frame_chars: int) -> Iterator[tuple[str, str]]:
    """(thinking, text) of each frame: as few frames as keep the order and the bound."""
    thinking = text = ""
    for is_text, part in _parts(pieces, frame_chars):
        full = len(thinking) + len(text) + len(part) > frame_chars
        # A reader puts a frame's thinking before its text, so thinking that came later needs a frame of its own.
        if full or (text and not is_text):
            yield thinking, text
            thinking = text = ""
        if is_text:
            text += part
        else:
            thinking += part
    if thinking or text:
        yield thinking, text


def _parts(pieces: Iterable[tuple[str, str]], frame_chars: int) -> Iterator[tuple[bool, str]]:
    """(whether it is text, at most frame_chars characters), in the order in which the model said them."""
    for piece in pieces:
        for is_text, whole in enumerate(piece):
            for start in range(0, len(whole), frame_chars):
                yield bool(is_text), whole[start : start + frame_chars]
