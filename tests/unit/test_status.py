"""`chatlog status`: what is wrong is said where it is wrong."""

from __future__ import annotations

from rich.console import Console

from contracts.turns import ModelPresence, Presence
from services.operator.show import print_status
from services.operator.status import Status
from tests.conversing import new_id


def presence(server: str, *models: ModelPresence) -> Presence:
    return Presence(
        worker_id=new_id(), models=list(models), server=server, server_kind="ollama", slots=2, free=2, runs=[]
    )


def test_a_sick_server_and_a_model_in_trouble_are_named_with_the_reason() -> None:
    console = Console(record=True, width=200)
    sick = presence("model_unreachable", ModelPresence(name="a"))
    halting = presence("ok", ModelPresence(name="b", trouble="model_stalled"), ModelPresence(name="c"))
    print_status(console, Status(server=[], streams=[], history=None, workers=[sick, halting], sizes={}))
    said = {line.split()[0]: line for line in console.export_text().splitlines() if line.strip()}
    assert "ollama model_unreachable" in said[sick.worker_id]
    assert "ollama ok" in said[halting.worker_id]
    assert said[halting.worker_id].endswith("b (model_stalled), c")
