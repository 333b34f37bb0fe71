"""Step 12, inference/models: the port to a model server: what a worker asks of one and what it may be told.

Owns the words that both adapters (ollama, openai) translate their wire into: a request, a piece, the end, a failure
with a stable code and whether the same request may succeed if sent again. Must never know of turns, claims or NATS.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal, Protocol

from contracts.errors import FailureCode


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One answer to be generated. Options have Chatlog's names (contracts.events.Options); adapters translate."""

    model: str
    messages: tuple[tuple[str, str], ...]  # (role, content), in prompt order; roles system, user, assistant
    seed: int  # fixed per turn at assembly, so that a second attempt asks for the same answer
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What the server generated since the last piece. At least one of the two is not empty; thinking comes first."""

    thinking: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """The server's own word that the answer is whole. usage holds only the counts that it gave."""

    end: Literal["stop", "length"]
    usage: dict[Literal["prompt_tokens", "completion_tokens", "cached_tokens"], int] = field(default_factory=dict)


class ModelFailure(Exception):
    """The server's answer failed: code says how (design D12).

    again: the same request may succeed if it is sent again (connect error, cut, empty clean end, error line, 5xx, 429);
    whether it is sent again is the worker's decision, which knows whether a piece was already let out.
    retry_after_s: what the server asked to wait, where it did.
    """

    def __init__(
        self, code: FailureCode, message: str, *, again: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code: FailureCode = code
        self.again = again
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the server names, with the window in force and a digest where it tells them."""

    name: str
    window: int | None = None  # tokens per request
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a silent server is believed. Comments and empty chunks do not count as a sign of life."""

    first_token_s: float
    between_tokens_s: float


class ModelServer(Protocol):
    """One connection to one model server, for one slot: a client shared by 64 streams was measured to add 235 ms."""

    async def models(self) -> list[Model]:
        """What the server can run now. Raises ModelFailure when it cannot be asked within a few seconds."""
        ...

    def answer(self, request: ModelRequest, patience: Patience) -> AsyncGenerator[Piece | End]:
        """The pieces in order, then exactly one End. Raises ModelFailure for everything else, never ends silently.

        Closing the generator (aclose) closes the socket: the only cancel that model servers know.
        """
        ...

    async def aclose(self) -> None: ...
