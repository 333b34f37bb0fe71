"""The plan of a run is its seed's: the same faults in the same order, as many kills as asked, few pauses."""

from __future__ import annotations

import random

from services.standin.faults import Fault
from tests.faults import plan as plans
from tests.faults.injector import CONDITIONS, MODEL_FAULTS
from tests.faults.plan import Kill, Model, Pause, Planned, Targets, plan

TARGETS = Targets(("nats", "history", "worker-0"), ("history>nats",), ("standin-0",))


def planned(seed: int, kills: int) -> list[Planned]:
    return list(plan(random.Random(seed), kills, TARGETS))


def test_a_seed_is_a_plan() -> None:
    assert planned(3, 50) == planned(3, 50) != planned(4, 50)


def test_kills_are_counted_and_pauses_bounded() -> None:
    faults = [each.fault for each in planned(1, 1000)]
    assert sum(len(fault.parts) for fault in faults if isinstance(fault, Kill)) == 1000
    pauses = [fault.seconds for fault in faults if isinstance(fault, Pause)]
    assert 50 < len(pauses) <= 100
    assert pauses.count(60.0) == len(pauses) // 10
    assert not [fault for fault in (each.fault for each in planned(1, 9)) if isinstance(fault, Pause)]


def test_every_kind_can_be_injected() -> None:
    """Each word that the plan may choose is one that the injector knows, and that the stand-in takes."""
    assert set(plans.MODEL) == MODEL_FAULTS.keys() | {"slow load"}
    assert set(plans.NETWORK) == CONDITIONS.keys() | {"cut", "reset", "half-open"}
    for name, told in MODEL_FAULTS.items():
        for after in (0, 1, 20):
            for kind, fields in told(Model("standin-0", name, after, 1.0)):
                Fault.model_validate({"kind": kind, **fields})
