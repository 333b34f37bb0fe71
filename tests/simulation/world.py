"""The simulated world: one history, two gateways, two workers, a nats-server, four clients; and all their troubles.

Owns time, and which step comes next. A step is one arrival of one message, one commit, one effect of a commit, or one
piece of a model's: between any two of them anything may die, stand still or lose its connection. After each step the
log is checked; once all troubles are over, everything must come to rest (settle) in a state that keeps the promises.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from services.inference.run import Outcome
from tests.conversing import make_event, session_started
from tests.recording import delivered
from tests.simulation.client import Client
from tests.simulation.gateway import Gateway
from tests.simulation.history import History
from tests.simulation.ledger import Ledger
from tests.simulation.rest import check_rest, unrest
from tests.simulation.server import Server, Work
from tests.simulation.truth import Truth
from tests.simulation.worker import Worker

Process = History | Gateway | Worker

GATEWAYS = ("gateway-0", "gateway-1")
WORKERS = ("worker-0", "worker-1")
PROCESSES = ("history", *GATEWAYS, *WORKERS)
# Two clients of one session, one of another of the same user, one of another user.
WINDOWS = (("a", 0), ("a", 0), ("a", 1), ("b", 2))
# The server closes a connection that leaves two pings of 10 s unanswered.
UNANSWERED_S = 20.0
# More than the longest wait of the product (a turn that nobody takes for 120 s), several times over.
REST_WITHIN_S = 600
# A worker that neither stood still nor was cut for so long has been heard.
HEARD_S = 10.0
# A client that has no outcome of a send sends it again.
REPEAT_EVERY_S = 10
# More steps than any burst of messages takes without time passing: beyond it they go in a circle.
STEPS_AT_ONCE = 3000


class World:
    """Everything that is simulated."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self.now_s = 0.0
        self.truth = Truth()
        self.server = Server(lambda: self.now_s)
        self.processes: dict[str, Process] = {}
        self._down_until: dict[str, float] = dict.fromkeys(PROCESSES, 0.0)
        self._paused: dict[str, tuple[float, float]] = {}  # since, until
        self._delayed_until: dict[str, float] = {}
        self._server_up_at = 0.0
        self.frames_lost = False
        self.deleted = False
        sessions = [self.new_id() for _ in range(3)]
        self.clients = [
            Client(f"window-{window}", user, sessions[number], self.truth)
            for window, (user, number) in enumerate(WINDOWS)
        ]
        for client in self.clients:
            self.server.put_event(delivered(session_started(client.session_id, user_id=client.user_id), reply=None))
        self._start_what_is_down()
        self.ledger = Ledger(folder / "log.db")

    def new_id(self) -> str:
        """In the form of a UUID; the same in each run of a schedule."""
        return f"{next(self._numbers):08x}-0000-7000-8000-000000000000"

    @property
    def history(self) -> History | None:
        found = self.processes.get("history")
        return found if isinstance(found, History) else None

    def gateway(self, number: int) -> Gateway | None:
        """This one, or the other where it is down."""
        for name in (GATEWAYS[number % 2], GATEWAYS[(number + 1) % 2]):
            found = self.processes.get(name)
            if isinstance(found, Gateway) and name not in self._paused:
                return found
        return None

    def any_gateway(self) -> Gateway:
        found = self.gateway(0)
        assert found is not None
        return found

    def worker(self, name: str) -> Worker:
        found = self.processes[name]
        assert isinstance(found, Worker)
        return found

    @property
    def consumed(self) -> int:
        """How much of the intake is in the log."""
        return self.history.recorder.cursor.sequence if self.history is not None else 0

    @property
    def disk_has_failed(self) -> bool:
        return self.history is not None and self.history.disk_fails_after is None

    def close(self) -> None:
        for name in list(self.processes):
            self.processes.pop(name).close()
        self.ledger.close()

    # Steps and time.

    def steps(self) -> list[Work]:
        """All that can happen next."""
        found = list(self.server.steps())
        for name, process in self.processes.items():
            if name not in self._paused and not isinstance(process, Gateway):
                found.extend(process.steps())
        return found

    def take(self, *picks: int) -> None:
        """As many steps, each one of those that can be taken then."""
        for pick in picks:
            if steps := self.steps():
                self._step(steps[pick % len(steps)])
        self.check_memory()

    def flow(self) -> None:
        """All that can happen without time passing, in the order in which it came."""
        for _ in range(STEPS_AT_ONCE):
            if not (steps := self.steps()):
                self.check_memory()
                return
            self._step(steps[0])
        raise AssertionError("it goes in a circle")

    def until(self, reached: Callable[[], bool]) -> None:
        """As everything happens that can: the very moment at which this is so, before anything else happens."""
        until_s = self.now_s + REST_WITHIN_S
        while not reached():
            assert self.now_s < until_s, "it is never so"
            if steps := self.steps():
                self._step(steps[0])
            else:
                self.tick()

    def live(self, seconds: int) -> None:
        """Time in which everything happens that can."""
        for _ in range(seconds):
            self.tick()
            self.flow()

    def _step(self, step: Work) -> None:
        history = self.history
        catching_up = history is None or history.catching_up
        step()
        self.ledger.read(catching_up=catching_up, alive=self._alive)

    def check_memory(self) -> None:
        """What history holds in memory is what is in its log."""
        if self.history is not None:
            self.ledger.check_cache(self.history)

    def tick(self) -> None:
        """A second: pauses end, supervisors start what died, clients reconnect, everybody's timers run."""
        self.now_s += 1.0
        if not self.server.up and self.now_s >= self._server_up_at:
            self.server.start()
        for name in [name for name, (_, until) in self._paused.items() if until <= self.now_s]:
            self.wake(name)
        for name in [name for name, until in self._delayed_until.items() if until <= self.now_s]:
            del self._delayed_until[name]
            if (process := self.processes.get(name)) is not None:
                process.connection.writing = True
                self._not_well(process)
        self._start_what_is_down()
        self.server.serve_contexts()
        for name, process in list(self.processes.items()):
            if name not in self._paused:
                process.tick()
        for client in self.clients:
            self._reconnect(client)

    def _not_well(self, process: Process) -> None:
        if isinstance(process, Worker):
            process.well_since = self.now_s

    def _alive(self, run: str) -> bool:
        """Whether a worker holds this run that history has every reason to call alive."""
        workers = [each for each in self.processes.values() if isinstance(each, Worker) and run in each.runs]
        return any(self.now_s - worker.well_since > HEARD_S and self._is_heard(worker) for worker in workers)

    def _is_heard(self, worker: Worker) -> bool:
        return worker.name not in self._paused and worker.connection.writing

    def _start_what_is_down(self) -> None:
        for name in PROCESSES:
            if name not in self.processes and self._down_until[name] <= self.now_s:
                self.processes[name] = self._started(name)

    def _started(self, name: str) -> Process:
        if name == "history":
            return History(self._folder, self.server, self.new_id)
        return Gateway(name, self.server) if name in GATEWAYS else Worker(name, self.server, self.new_id, self.truth)

    def wake(self, name: str) -> None:
        """SIGCONT."""
        since, _ = self._paused.pop(name)
        connection = self.processes[name].connection
        connection.reading = True
        self._not_well(self.processes[name])
        if self.now_s - since > UNANSWERED_S:
            self.server.cut(connection)

    def _reconnect(self, client: Client) -> None:
        gateway = client.gateway
        gone = gateway is None or self.processes.get(gateway.name) is not gateway
        if gone and (other := self.gateway(0)) is not None:
            client.attach(other)

    # Troubles.

    def kill(self, name: str, down_s: int) -> None:
        """SIGKILL; its supervisor starts it again."""
        if name in self.processes:
            self._paused.pop(name, None)
            self.processes.pop(name).close()
            self._down_until[name] = self.now_s + down_s

    def pause(self, name: str, for_s: int) -> None:
        """SIGSTOP."""
        if name in self.processes and name not in self._paused:
            self._paused[name] = self.now_s, self.now_s + for_s
            self.processes[name].connection.reading = False

    def delay(self, name: str, for_s: int) -> None:
        """What it sends arrives late."""
        if (process := self.processes.get(name)) is not None:
            process.connection.writing = False
            self._delayed_until[name] = self.now_s + for_s

    def cut(self, name: str) -> None:
        """Its connection; it has another at once."""
        if (process := self.processes.get(name)) is not None and name not in self._paused:
            self._not_well(process)
            self.server.cut(process.connection)

    def drop(self, name: str) -> None:
        """A slow consumer, which the client reports: gateways and workers ask again."""
        process = self.processes.get(name)
        if isinstance(process, Gateway | Worker) and name not in self._paused:
            self.server.drop(process.connection)
            process.after_drop()

    def kill_server(self, down_s: int, lost: int, back: int) -> None:
        """nats-server, with the latest contexts lost, and with finished ones back."""
        if self.server.up:
            self.server.kill(lost, back)
            self._server_up_at = self.now_s + down_s

    def end_model(self, worker: str, outcome: Outcome) -> None:
        """The model of its oldest run ends now, one way or the other."""
        process = self.processes.get(worker)
        if isinstance(process, Worker) and process.runs and worker not in self._paused:
            next(iter(process.runs.values())).end(outcome)

    def lose(self, name: str) -> None:
        """One frame of a feed, without a word to anybody: the next one shows it."""
        if (process := self.processes.get(name)) is not None:
            self.frames_lost |= self.server.lose_frame(process.connection)

    def fail_disk(self, rows: int) -> None:
        """History's next batch fails after so many rows."""
        if self.history is not None:
            self.history.disk_fails_after = rows

    def rename(self, client: Client, title: str) -> None:
        """The plainest event of a session, from elsewhere."""
        event = make_event("session_renamed", client.session_id, {"title": title}, user_id=client.user_id)
        self.server.put_event(delivered(event, reply=None))

    # Rest.

    def settle(self) -> None:
        """No more troubles: everything that was begun ends."""
        self._server_up_at = self.now_s
        self._down_until = dict.fromkeys(PROCESSES, 0.0)
        self._paused = {name: (since, self.now_s) for name, (since, _) in self._paused.items()}
        self._delayed_until = dict.fromkeys(self._delayed_until, self.now_s)
        if self.frames_lost:
            self._say_one_thing_more()
        if self.deleted:
            self._restore_all()
        for second in range(REST_WITHIN_S):
            self.live(1)
            if second % REPEAT_EVERY_S == 0:
                self._repeat_what_is_unknown()
            elif not any(unrest(self)):
                break
        else:
            raise AssertionError(f"no rest: {list(unrest(self))}")
        check_rest(self)

    def _say_one_thing_more(self) -> None:
        """A lost frame shows by the one after it: here it is."""
        for client in self.clients:
            self.rename(client, "more")

    def _restore_all(self) -> None:
        """Nobody is shown a deleted session from its start: who has not seen it yet waits until it is back."""
        for client in self.clients:
            self.server.put_event(delivered(client.undo(), reply=None))

    def _repeat_what_is_unknown(self) -> None:
        for client in self.clients:
            for send in client.sends:
                gateway = self.gateway(0)
                if gateway is not None and not send.accepted:
                    client.repeat(gateway, send)
                elif gateway is not None and not send.outcomes:
                    gateway.ask_outcome(send.event, send.outcomes.append)
