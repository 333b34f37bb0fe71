"""How the services' own coroutines run without an event loop: a step at a time, when the world says so.

Owns two kinds of waiting: for the world's next step (PAUSE), and for the answer to a request (Asked).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from services.runtime.bus import NoAnswer
from tests.simulation.server import Connection

T = TypeVar("T")
Then = Callable[[bytes | None], None]


class Pause:
    """Here the process may be killed, or others may go on first."""

    def __await__(self) -> Generator[Pause, None, None]:
        yield self


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is under way. begin: sends it, and calls what it is given with the answer."""

    begin: Callable[[Then], None]

    def __await__(self) -> Generator[Asked, bytes | None, bytes | None]:
        return (yield self)


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise AssertionError("it waits")


def talk(coroutine: Coroutine[Any, Any, object], ended: Callable[[Exception | None], None]) -> None:
    """Run a coroutine that makes requests; ended is called with what it raised."""

    def go_on(answer: bytes | None = None) -> None:
        try:
            asked = coroutine.send(answer)
        except StopIteration:
            ended(None)
        except Exception as error:  # noqa: BLE001 - handed to who knows what it means
            ended(error)
        else:
            asked.begin(go_on)

    go_on()


class SteppedBus:
    """services/runtime/bus as far as stepped coroutines need it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @property
    def connected(self) -> bool:
        return self.connection.connected

    async def publish_live(self, subject: str, payload: bytes, reply: str = "") -> bool:
        await Pause()
        self.connection.publish(subject, payload, reply)
        return self.connected

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        answer = await Asked(lambda then: self.connection.ask(subject, payload, then, timeout_s))
        if answer is None:
            raise NoAnswer
        return answer
