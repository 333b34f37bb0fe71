"""The simulated nats-server: what Chatlog relies on of the real one, each rule as it was measured (docs/adr).

Owns everything that is on its way. A lane is what one connection has sent to another for one subscription: in order
within the lane, in any order between lanes. Nothing moves by itself: the world takes one step of one lane at a time. A
cut connection loses what was on its way, both ways, without a word. A stream keeps what it has stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from services.history.arrivals import Delivery
from services.runtime.streams import ACK_WAIT_S

CREATED = "2026-11-20T00:00:00Z"
PUBLISH_TIMEOUT_S = 5.0

Work = Callable[[], None]
Handler = Callable[[bytes, str], None]  # payload, where its answer goes
Take = Callable[[Delivery], None]


class Connection:
    """One process's connection. reading False: the process is paused, so that what comes to it waits. writing False:
    what it has sent lies in its socket.
    """

    def __init__(self, server: Server, name: str, after_reconnect: Work) -> None:
        self.server = server
        self.name = name
        self.after_reconnect = after_reconnect
        self.reading = True
        self.writing = True
        self.connected = server.up
        self._asked: dict[str, tuple[Callable[[bytes | None], None], float]] = {}
        server.connections.append(self)

    def subscribe(self, pattern: str, handler: Handler) -> Subscription:
        subscription = Subscription(self, pattern, handler)
        self.server.subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """What is on its way to it is nobody's."""
        self.server.subscriptions.remove(subscription)
        for lane in [lane for lane in self.server.lanes if lane[2] is subscription]:
            del self.server.lanes[lane]

    def publish(self, subject: str, payload: bytes, reply: str = "") -> bool:
        """On core NATS, at most once. False: nobody listens."""
        return self.connected and self.server.fan_out(self, subject, payload, reply)

    def ask(self, subject: str, payload: bytes, then: Callable[[bytes | None], None], timeout_s: float) -> None:
        """A request: then gets the answer, or None where nobody listens or nothing comes in time."""
        reply = self._expect(then, timeout_s)
        if not self.publish(subject, payload, reply):
            self.server.send((None, self, "answers"), lambda: self.answered(reply, None))

    def store(self, put: Callable[[], int], then: Callable[[int | None], None]) -> None:
        """Publish to a stream: then gets what put gave, or None where no acknowledgement comes in time."""
        reply = self._expect(lambda answer: then(None if answer is None else int(answer)), PUBLISH_TIMEOUT_S)

        def arrived() -> None:
            number = b"%d" % put()
            self.server.send((None, self, "answers"), lambda: self.answered(reply, number))

        self.tell(arrived)

    def tell(self, work: Work) -> None:
        """For the server itself: a publish to a stream, a pull, an ack, a purge."""
        if self.connected:
            self.server.send((self, None, "streams"), work)

    def expire(self) -> None:
        """Requests that nobody answered in time."""
        for reply in [reply for reply, (_, until) in self._asked.items() if until <= self.server.now()]:
            self.answered(reply, None)

    def answered(self, reply: str, payload: bytes | None) -> None:
        then, _ = self._asked.pop(reply, (None, 0.0))
        if then is not None:
            then(payload)

    def _expect(self, then: Callable[[bytes | None], None], timeout_s: float) -> str:
        reply = self.server.new_inbox()
        self.server.asked[reply] = self
        self._asked[reply] = then, self.server.now() + timeout_s
        return reply


@dataclass(frozen=True, slots=True, eq=False)
class Subscription:
    """A pattern ends with * or is the subject itself."""

    connection: Connection
    pattern: str
    handler: Handler

    def takes(self, subject: str) -> bool:
        return self.pattern == subject or (self.pattern.endswith("*") and subject.startswith(self.pattern[:-1]))


# A lane of the wire: from whom, to whom (None: the server), and what for.
Lane = tuple[Connection | None, Connection | None, Subscription | str]


@dataclass(slots=True)
class Queued:
    """A context in its queue. until: then it is delivered again, unless its worker is heard; 0: nobody has it."""

    subject: str
    payload: bytes
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Pull:
    """A worker's request for one context."""

    connection: Connection
    until_s: float
    deliver: Callable[[int, bytes], None]


@dataclass(slots=True)
class Follower:
    """History's consumer of the intake, which waits for all that comes."""

    connection: Connection
    take: Take
    next_sequence: int


@dataclass(slots=True)
class Server:
    """Its whole state. acknowledged: contexts that a killed server may have again: that stream is not synced."""

    now: Callable[[], float]
    up: bool = True
    connections: list[Connection] = field(default_factory=list)
    subscriptions: list[Subscription] = field(default_factory=list)
    lanes: dict[Lane, deque[Work]] = field(default_factory=dict)
    intake: list[Delivery] = field(default_factory=list)
    contexts: dict[int, Queued] = field(default_factory=dict)
    acknowledged: list[Queued] = field(default_factory=list)
    pulls: list[Pull] = field(default_factory=list)
    follower: Follower | None = None
    asked: dict[str, Connection] = field(default_factory=dict)  # whose requests wait for an answer, by its subject
    _numbers: int = 0

    # What is on its way.

    def send(self, lane: Lane, work: Work) -> None:
        self.lanes.setdefault(lane, deque()).append(work)

    def steps(self) -> Iterator[Work]:
        """The next arrival of each lane that moves."""
        for lane in self.lanes:
            source, target, _ = lane
            if (target is None or target.reading) and (source is None or source.writing):
                yield lambda lane=lane: self._arrive(lane)  # type: ignore[misc]

    def _arrive(self, lane: Lane) -> None:
        work = self.lanes[lane].popleft()
        if not self.lanes[lane]:
            del self.lanes[lane]
        work()

    def fan_out(self, source: Connection, subject: str, payload: bytes, reply: str) -> bool:
        """To every subscriber, each by a lane of its own; an answer to who asked. False: nobody listens."""
        if (asker := self.asked.pop(subject, None)) is not None:
            self.send((source, asker, "answers"), lambda: asker.answered(subject, payload))
            return True
        found = [subscription for subscription in self.subscriptions if subscription.takes(subject)]
        for to in found:
            self.send((source, to.connection, to), lambda on=to.handler: on(payload, reply))  # type: ignore[misc]
        return bool(found)

    def new_inbox(self) -> str:
        self._numbers += 1
        return f"_INBOX.{self._numbers}"

    # The intake.

    def put_event(self, sent: Delivery) -> int:
        self.intake.append(replace(sent, sequence=len(self.intake) + 1))
        self._feed_follower()
        return len(self.intake)

    def follow(self, connection: Connection, start: int, take: Take) -> None:
        """A new consumer: what the one before had on its way is nobody's."""
        self.lanes.pop((None, connection, "intake"), None)
        self.follower = Follower(connection, take, start)
        self._feed_follower()

    def _feed_follower(self) -> None:
        """As if a pull always waited. The consumer goes on behind what a cut has lost: the follower opens another."""
        follower = self.follower
        while follower is not None and follower.connection.connected and follower.next_sequence <= len(self.intake):
            delivery = self.intake[follower.next_sequence - 1]
            follower.next_sequence += 1
            self.send((None, follower.connection, "intake"), lambda d=delivery: follower.take(d))  # type: ignore[misc]

    # The queue of contexts: one message per subject, removed by any delivery's ack.

    def put_context(self, subject: str, payload: bytes) -> int:
        if all(queued.subject != subject for queued in self.contexts.values()):
            self._numbers += 1
            self.contexts[self._numbers] = Queued(subject, payload)
            self.serve_contexts()
        return 0

    def pull(self, pull: Pull) -> None:
        self.pulls.append(pull)
        self.serve_contexts()

    def serve_contexts(self) -> None:
        """What nobody has, and what its worker was not heard of in time, to who asked first. Deliveries: no count."""
        self.pulls = [pull for pull in self.pulls if pull.until_s > self.now()]
        for number, queued in self.contexts.items():
            if self.pulls and queued.until <= self.now():
                pull = self.pulls.pop(0)
                queued.until = self.now() + ACK_WAIT_S
                deliver = lambda n=number, q=queued, p=pull: p.deliver(n, q.payload)  # noqa: E731
                self.send((None, pull.connection, "contexts"), deliver)

    def acknowledge(self, number: int) -> None:
        """Of whichever delivery, however late (measured)."""
        if number in self.contexts:
            self.acknowledged.append(self.contexts.pop(number))

    def give_back(self, number: int) -> None:
        if number in self.contexts:
            self.contexts[number].until = 0.0
            self.serve_contexts()

    def keep(self, number: int) -> None:
        """A heartbeat."""
        if number in self.contexts:
            self.contexts[number].until = self.now() + ACK_WAIT_S

    def purge_context(self, subject: str) -> None:
        self.contexts = {number: queued for number, queued in self.contexts.items() if queued.subject != subject}

    # Faults.

    def cut(self, connection: Connection) -> None:
        """What was on its way is lost. The client reconnects by itself, and its hook runs."""
        self._lose(connection)
        if self.up and connection in self.connections:
            connection.connected = True
            connection.after_reconnect()

    def drop(self, connection: Connection) -> None:
        """A slow consumer: what waits for it is lost, and the client says so."""
        for lane in [lane for lane in self.lanes if lane[1] is connection and isinstance(lane[2], Subscription)]:
            del self.lanes[lane]

    def lose_frame(self, connection: Connection) -> bool:
        """The next frame of a feed on its way to it, if there is one."""
        for lane, works in self.lanes.items():
            if lane[1] is connection and isinstance(lane[2], Subscription) and lane[2].pattern.startswith("chat.feed."):
                works.popleft()
                if not works:
                    del self.lanes[lane]
                return True
        return False

    def close(self, connection: Connection) -> None:
        """Its process is dead."""
        self._lose(connection)
        self.connections.remove(connection)
        self.subscriptions = [each for each in self.subscriptions if each.connection is not connection]

    def kill(self, lost: int, back: int) -> None:
        """SIGKILL: the intake is synced; the latest contexts may be lost and acknowledged ones be there again."""
        self.up = False
        for connection in self.connections:
            self._lose(connection)
        for number in sorted(self.contexts)[len(self.contexts) - lost :]:
            del self.contexts[number]
        for queued in self.acknowledged[len(self.acknowledged) - back :]:
            self.put_context(queued.subject, queued.payload)
        self.acknowledged.clear()
        for queued in self.contexts.values():
            queued.until = 0.0

    def start(self) -> None:
        self.up = True
        for connection in list(self.connections):
            self.cut(connection)

    def _lose(self, connection: Connection) -> None:
        connection.connected = False
        for lane in [lane for lane in self.lanes if connection in lane[:2]]:
            del self.lanes[lane]
        self.pulls = [pull for pull in self.pulls if pull.connection is not connection]
        if self.follower is not None and self.follower.connection is connection and not self.up:
            self.follower = None  # it was in the server's memory
