"""Beside the road (core): what of a conversation the model is shown: the template, its tokens, the cut to the window.

It owns Ollama's two silent truncations and the refusals that replace them, as recorded, and the prompt cache's
longest common prefix. It must never touch a socket or a clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.standin.model import token_count

TOKENS_PER_MESSAGE: Final = 5
TOKENS_OF_THE_TURN: Final = 4
"""The template's own tokens: with these an empty message has 9, as recorded."""

KEPT_AT_THE_FRONT: Final = 4
"""Tokens kept of the front when a single message is cut (num_keep); what follows keeps about half the window."""

CACHED_PROMPTS: Final = 64
"""Conversations a loaded model remembers; the recorded server keeps some in memory beside its slots."""


@dataclass(frozen=True)
class Message:
    role: str
    content: str
    thinking: str = ""

    @property
    def tokens(self) -> int:
        return TOKENS_PER_MESSAGE + token_count(self.content) + token_count(self.thinking)


@dataclass(frozen=True)
class Window:
    """How long a prompt may be and what happens to one that is longer."""

    size: int
    truncate: bool
    shift: bool


@dataclass(frozen=True)
class Prompt:
    """What the model reads: the messages that fitted and how many tokens they are."""

    messages: tuple[Message, ...]
    tokens: int

    @property
    def text(self) -> str:
        return render(self.messages)


class PromptTooLong(Exception):
    """The prompt does not fit, and may not be cut; `by_server` False: the front door says so, not the runner."""

    def __init__(self, prompt_tokens: int, window: int, *, cut_refused: bool = False) -> None:
        super().__init__(f"request ({prompt_tokens} tokens) exceeds the available context size ({window} tokens)")
        self.prompt_tokens = prompt_tokens
        self.window = window
        self.cut_refused = cut_refused


def render(messages: Sequence[Message]) -> str:
    """The template that the recordings' models have."""
    turns = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages)
    return f"{turns}<|im_start|>assistant\n"


def prompt_tokens(messages: Sequence[Message]) -> int:
    return sum(message.tokens for message in messages) + TOKENS_OF_THE_TURN


def fit(messages: Sequence[Message], window: Window) -> Prompt:
    """The prompt for these messages, cut in silence as Ollama cuts; or PromptTooLong."""
    total = prompt_tokens(messages)
    if total < window.size:
        return Prompt(tuple(messages), total)
    if not window.truncate:
        raise PromptTooLong(total, window.size)
    kept = _drop_from_front(messages, window.size)
    left = prompt_tokens(kept)
    if left < window.size:
        return Prompt(tuple(kept), left)
    if not window.shift:
        raise PromptTooLong(left, window.size, cut_refused=True)
    return Prompt(tuple(kept), window.size - (window.size - KEPT_AT_THE_FRONT) // 2)


def _drop_from_front(messages: Sequence[Message], size: int) -> list[Message]:
    """Whole messages go from the front until the rest fits; system messages and the last one always stay."""
    total = prompt_tokens(messages)
    kept: list[Message] = []
    for at, message in enumerate(messages):
        last = at == len(messages) - 1
        if total < size or message.role == "system" or last:
            kept.append(message)
        else:
            total -= message.tokens
    return kept


class PromptCache:
    """The conversations a loaded model still holds: reading one again costs only what is new in it."""

    def __init__(self) -> None:
        self._prompts: OrderedDict[tuple[Message, ...], None] = OrderedDict()

    def cached_tokens(self, prompt: Prompt) -> int:
        """How many of the prompt's tokens need not be read; one always is."""
        best = max((_shared_tokens(prompt.messages, known) for known in self._prompts), default=0)
        return min(best, prompt.tokens - 1)

    def remember(self, messages: tuple[Message, ...]) -> None:
        self._prompts[messages] = None
        self._prompts.move_to_end(messages)
        while len(self._prompts) > CACHED_PROMPTS:
            self._prompts.popitem(last=False)


def _shared_tokens(wanted: Sequence[Message], known: Sequence[Message]) -> int:
    shared = 0
    for one, other in zip(wanted, known, strict=False):
        if one != other:
            break
        shared += one.tokens
    else:
        shared += TOKENS_OF_THE_TURN if len(wanted) <= len(known) else 0
    return shared
