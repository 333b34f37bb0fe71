"""Beside the road (core): the model that is none: its tokens, its deterministic text, its stop strings.

It owns what a model knows of itself and which pieces an answer has: a pure function of prompt and seed. It must never
read a clock or a random source, and its text must never pass for a model's: it begins by saying what it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict

CONFESSION: Final = "This is the stand-in, not a model:"
"""How every answer of its own begins, so that nobody mistakes it for a model's."""

TOKEN: Final = re.compile(r"[^\S\n]?[A-Za-z']{1,12}|[^\S\n]?[0-9]|[^\S\n]?[\x21-\x7e]|[^\x00-\x7f]|\s|[\x00-\x7f]")
"""A token: a short word with the blank before it, a digit, a sign, or one character outside ASCII."""

WORDS: Final = (
    *("river", "stone", "paper", "lamp", "garden", "winter", "copper", "window", "music", "harbour", "engine"),
    *("letter", "cloud", "meadow", "silver", "bridge", "candle", "forest", "market", "anchor", "ribbon", "valley"),
    *("pocket", "signal", "morning", "kettle", "island", "ladder", "orchard", "compass", "basket", "feather"),
)
REPEATS_ALLOWED: Final = 30
"""Ollama gives up, without a word, once a token has been repeated more often than this."""


class ModelSpec(BaseModel):
    """A model that the stand-in claims to have. `window` None: the server's own choice."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    window: int | None = None
    train_window: int = 8192
    capabilities: tuple[str, ...] = ("completion",)

    @property
    def full_name(self) -> str:
        return full_name(self.name)

    @property
    def thinks(self) -> bool:
        return "thinking" in self.capabilities

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.full_name.encode()).hexdigest()


class Catalogue:
    """The models that the stand-in claims to have, and the window of those that name none."""

    def __init__(self, specs: Sequence[ModelSpec], default_window: int) -> None:
        self._specs = {spec.full_name: spec for spec in specs}
        self._default_window = default_window

    def __iter__(self) -> Iterator[ModelSpec]:
        return iter(self._specs.values())

    def find(self, name: str) -> ModelSpec | None:
        return self._specs.get(full_name(name))

    def without(self, names: Collection[str]) -> Catalogue:
        """The same but for these models."""
        missing = {full_name(name) for name in names}
        left = [spec for spec in self if spec.full_name not in missing]
        return Catalogue(left, self._default_window)

    def window(self, spec: ModelSpec, asked: int | None = None) -> int:
        """The window in force: what was asked, else the model's, else the server's; never more than it was trained."""
        return max(4, min(asked or spec.window or self._default_window, spec.train_window))


def full_name(name: str) -> str:
    """A model's name as servers compare them: lower case, and `:latest` where no tag is given."""
    lowered = name.lower()
    return lowered if ":" in lowered.rsplit("/", 1)[-1] else f"{lowered}:latest"


def tokens(text: str) -> list[str]:
    """The pieces of a text, one a token, but that a character outside ASCII counts more (see `token_count`)."""
    return TOKEN.findall(text)


def token_count(text: str) -> int:
    """How many tokens a text has: a character of several bytes is several tokens and still one piece."""
    return sum(1 if piece.isascii() else max(1, len(piece.encode("utf-8", "replace")) - 1) for piece in tokens(text))


@dataclass(frozen=True)
class Piece:
    """A piece of an answer as one event of the wire; thinking goes in a field of its own."""

    text: str
    thinking: bool = False


def answer(prompt: str, seed: int | None, length: int) -> Iterator[Piece]:
    """`length` pieces of an answer, the same for the same prompt and seed; no seed is a seed too."""
    return (Piece(text) for text in _pieces(CONFESSION, f"{seed}:{prompt}", length))


def thoughts(prompt: str, seed: int | None, length: int) -> Iterator[Piece]:
    return (
        Piece(text, thinking=True) for text in _pieces("The stand-in pretends to think:", f"?{seed}:{prompt}", length)
    )


def _pieces(opening: str, source: str, length: int) -> Iterator[str]:
    opened = tokens(opening)
    yield from opened[:length]
    digest = hashlib.sha256(source.encode("utf-8", "replace")).digest()
    state = int.from_bytes(digest[:8], "big")
    previous = ""
    for _ in range(len(opened), length):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        word = WORDS[(state >> 33) % len(WORDS)]
        word = word if word != previous else f"{word}s"
        previous = word
        yield f" {word}"


class StopStrings:
    """Finds stop strings in a stream of pieces and withholds what may still become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """What may go out of all that was fed; once `hit`, everything before the stop string has been given."""
        if not self._stops:
            return text
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            out, self._held = self._held[: min(found)], ""
            return out
        keep = max(_overlap(self._held, stop) for stop in self._stops)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def rest(self) -> str:
        """What was withheld at the end of a text in which no stop string came."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin the stop string."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class RepeatGuard:
    """Ollama's own guard: true once one token has come again more than REPEATS_ALLOWED times in a row."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._repeats = 0

    def trips(self, text: str) -> bool:
        word = text.strip()
        self._repeats = self._repeats + 1 if word == self._last else 0
        self._last = word
        return self._repeats > REPEATS_ALLOWED
