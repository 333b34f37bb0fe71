"""The state machine that hypothesis drives through the simulated world: users' deeds, steps, time, and troubles.

Each rule is one call of the world, with small numbers only, so that a failing run is printed as a program of such
calls: it can be kept word for word (tests/simulation/test_schedules.py).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import get_args

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from contracts.events import OnBusy
from services.inference.run import Completed, Failed, Lost, Outcome
from tests.simulation.world import GATEWAYS, WINDOWS, WORKERS, World

# Memory where there is some: what is simulated is never the loss of what was written.
MEMORY = Path("/dev/shm")

# database: a failing schedule is printed, and kept by hand; nothing is to depend on a folder that CI does not have.
SETTINGS = settings(
    stateful_step_count=40, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck)
)

# How a model may end: said whole, lost in the middle (another attempt may do better), or failed for good.
ENDS: dict[str, Outcome] = {"completed": Completed("stop"), "lost": Lost("model_lost"), "failed": Failed("model_cut")}

# kill and pause: SIGKILL, SIGSTOP. delay: what it sends comes late. cut: its connection. drop: what waits for it. lose:
# one frame on its way to it.
TROUBLES = ("kill", "pause", "delay", "cut", "drop", "lose")

clients = st.integers(0, len(WINDOWS) - 1)
gateways = st.integers(0, len(GATEWAYS) - 1)
picks = st.lists(st.integers(0, 11), min_size=1, max_size=25)
seconds = st.sampled_from((1, 2, 3, 5, 8, 13, 70))


class Core(RuleBasedStateMachine):
    """One world, and what may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.world = World(self._folder)
        self.world.live(2)  # history is up; clients attach
        for client in range(len(WINDOWS)):
            self.send(client, client, "queue")

    def teardown(self) -> None:
        try:
            self.world.settle()
        finally:
            self.world.close()
            shutil.rmtree(self._folder)

    # What users do.

    @rule(client=clients, gateway=gateways, on_busy=st.sampled_from(get_args(OnBusy)))
    def send(self, client: int, gateway: int, on_busy: str) -> None:
        if (through := self.world.gateway(gateway)) is not None:
            self.world.clients[client].send(through, "hello", on_busy)

    @rule(client=clients, gateway=gateways, which=st.integers(0, 5), same=st.booleans())
    def send_again(self, client: int, gateway: int, which: int, same: bool) -> None:
        """Under a key that was used before: the same, or by a client's mistake something else."""
        sends = self.world.clients[client].sends
        through = self.world.gateway(gateway)
        if through is None or not sends:
            return
        if same:
            self.world.clients[client].repeat(through, sends[which % len(sends)])
        else:
            self.world.clients[client].send(through, "other", "queue", number=which % len(sends))

    @rule(client=clients, gateway=gateways, which=st.integers(0, 5))
    def stop(self, client: int, gateway: int, which: int) -> None:
        """Stop a turn that the client sees, most likely the latest."""
        turns = [turn_id for turn_id in self.world.clients[client].view.answers if turn_id]
        if turns and (through := self.world.gateway(gateway)) is not None:
            self.world.clients[client].cancel(through, turns[-1 - which % len(turns)])

    @rule(client=clients, gateway=gateways)
    def delete(self, client: int, gateway: int) -> None:
        if (through := self.world.gateway(gateway)) is not None:
            self.world.clients[client].delete(through)
            self.world.deleted = True

    @rule(client=clients, gateway=gateways)
    def restore(self, client: int, gateway: int) -> None:
        if (through := self.world.gateway(gateway)) is not None:
            self.world.clients[client].restore(through)

    @rule(client=clients, gateway=gateways, at_bookmark=st.booleans())
    def attach(self, client: int, gateway: int, at_bookmark: bool) -> None:
        if (through := self.world.gateway(gateway)) is not None:
            self.world.clients[client].attach(through, at_bookmark=at_bookmark)

    @rule(client=clients)
    def remember(self, client: int) -> None:
        self.world.clients[client].remember()

    # What goes on.

    @rule(picks=picks)
    def steps(self, picks: list[int]) -> None:
        self.world.take(*picks)

    @rule(seconds=st.sampled_from((0, 1, 2, 4)))
    def live(self, seconds: int) -> None:
        self.world.flow()
        self.world.live(seconds)

    @rule(seconds=st.integers(1, 15))
    def time(self, seconds: int) -> None:
        """Time in which nothing arrives."""
        for _ in range(seconds):
            self.world.tick()

    # Troubles.

    @rule(trouble=st.sampled_from(TROUBLES), worker=st.sampled_from(WORKERS), for_s=seconds)
    def trouble_worker(self, trouble: str, worker: str, for_s: int) -> None:
        self._trouble(trouble, worker, for_s)

    @rule(trouble=st.sampled_from(TROUBLES), gateway=st.sampled_from(GATEWAYS), for_s=seconds)
    def trouble_gateway(self, trouble: str, gateway: str, for_s: int) -> None:
        self._trouble(trouble, gateway, for_s)

    @rule(trouble=st.sampled_from(TROUBLES), for_s=seconds)
    def trouble_history(self, trouble: str, for_s: int) -> None:
        self._trouble(trouble, "history", for_s)

    def _trouble(self, trouble: str, process: str, for_s: int) -> None:
        match trouble:
            case "kill":
                self.world.kill(process, for_s)
            case "pause":
                self.world.pause(process, for_s)
            case "delay":
                self.world.delay(process, for_s)
            case "cut":
                self.world.cut(process)
            case "drop":
                self.world.drop(process)
            case "lose":
                self.world.lose(process)

    @rule(down_s=seconds, lost=st.integers(0, 2), back=st.integers(0, 2))
    def kill_server(self, down_s: int, lost: int, back: int) -> None:
        self.world.kill_server(down_s, lost, back)

    @rule(worker=st.sampled_from(WORKERS), how=st.sampled_from(sorted(ENDS)))
    def end_model(self, worker: str, how: str) -> None:
        self.world.end_model(worker, ENDS[how])

    @rule(which=st.integers(0, 5), how=st.sampled_from(("kill", "pause", "lost")), for_s=seconds, then=seconds)
    def strike_a_run(self, which: int, how: str, for_s: int, then: int) -> None:
        """A worker that runs a turn, and the time in which another one may take it: chance seldom meets it alone."""
        self.world.flow()
        holders = [name for name in WORKERS if name in self.world.processes and self.world.worker(name).runs]
        if not holders:
            return
        worker = holders[which % len(holders)]
        if how == "lost":
            self.world.end_model(worker, ENDS["lost"])
        else:
            self._trouble(how, worker, for_s)
        self.world.live(then)

    @rule(rows=st.integers(0, 3))
    def fail_disk(self, rows: int) -> None:
        self.world.fail_disk(rows)
