"""`docker compose --profile standin up --scale inference=3`: healthy, shared, and nothing lost with a worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.containers.engine import needs_stacks
from tests.containers.stacks import Stack, run, stack
from tests.pages import README, block
from tests.polling import eventually
from tests.standins import QUICK, Control, plain_client

pytestmark = [needs_stacks, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

WORKERS = 3
TURNS = 30
ONE_SHOTS = {"credentials", "provision"}
# Nobody of this number is in any image: whoever runs a container may be anybody.
FOREIGN_USER = "4242:4242"
FILES = ("compose.yaml", str(Path(__file__).with_name("standin.yaml")))
ANSWER_TIMEOUT_S = 60.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up() -> AsyncIterator[Stack]:
    scale = ("--scale", f"inference={WORKERS}")
    async with stack("standin", *scale, files=FILES, CHATLOG_USER=FOREIGN_USER) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def control(up: Stack) -> AsyncIterator[Control]:
    address = (await up.compose("port", "standin", "11436")).strip()
    async with plain_client(ANSWER_TIMEOUT_S, f"http://{address}") as client:
        yield Control(client)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(up: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with plain_client(ANSWER_TIMEOUT_S, up.gateway) as http:
        yield http


async def ask(client: httpx.AsyncClient, name: str) -> dict[str, Any]:
    """One turn in a session of its own; its answer, as its sender is told of it."""
    (await client.post("/v1/sessions", json={"name": name})).raise_for_status()
    answer = await client.post(f"/v1/sessions/name:{name}/messages", params={"wait": "answer"}, json={"text": name})
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()["answer"]
    return found


async def runs_over(up: Stack) -> list[set[str]]:
    """The turns that each worker ended, by its log."""
    workers = await up.containers("inference")
    logs = [await up.logged(worker) for worker in workers]
    return [{line["turn_id"] for line in log if line["event"] == "run_over"} for log in logs]


async def test_all_are_healthy_and_the_one_shots_are_done(up: Stack) -> None:
    found = await up.containers()
    states = {each["Name"].split("-")[-2]: each["State"] for each in found}
    assert {name for name, state in states.items() if state.get("Health", {}).get("Status") == "healthy"} == {
        "nats", "history", "gateway", "inference", "standin"
    }  # fmt: skip
    assert {name: state["ExitCode"] for name, state in states.items() if not state["Running"]} == dict.fromkeys(
        ONE_SHOTS, 0
    )


async def test_each_is_locked_down_and_only_the_gateway_is_published(up: Stack) -> None:
    for each in await up.containers():
        host, name = each["HostConfig"], each["Name"]
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert host["SecurityOpt"] == ["no-new-privileges:true"], name
        assert each["Config"]["User"] == FOREIGN_USER, name
        published = {bound["HostIp"] for bounds in host["PortBindings"].values() for bound in bounds}
        assert published == ({"127.0.0.1"} if "gateway" in name or "standin" in name else set()), name


async def test_no_secret_is_in_what_the_engine_shows(up: Stack) -> None:
    volume = f"{up.project}_secrets:/secrets:ro"
    reader = ("docker", "run", "--rm", "--volume", volume, "--user")
    kept = await run(*reader, FOREIGN_USER, "chatlog", "cat", "/secrets/secrets.json")
    with pytest.raises(AssertionError, match="Permission denied"):
        await run(*reader, "4343", "chatlog", "cat", "/secrets/secrets.json")
    secrets = json.loads(kept).values()
    shown = json.dumps(await up.containers()) + await up.compose("config") + await up.compose("logs")
    assert len(set(secrets)) == 3
    assert not [secret for secret in secrets if secret in shown]


async def test_the_readme_s_curl_streams_an_answer(up: Stack) -> None:
    commands = block(README, "sh", "curl").replace("localhost:8700", up.gateway.removeprefix("http://"))
    printed = await run("bash", "-ec", commands)
    frames = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("data: ")]
    tokens = [frame["text"] for frame in frames if frame["type"] == "token"]
    assert len(tokens) > 1
    assert frames[-1]["event"]["data"]["text"] == "".join(tokens)


async def test_another_host_is_refused_though_the_gateway_listens_on_all_addresses(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz", headers={"Host": "chat.example"})).status_code == 421


async def test_three_workers_share_the_turns(up: Stack, client: httpx.AsyncClient, control: Control) -> None:
    before = await runs_over(up)
    await control.speed(token_gap_ms=10)
    ends = await asyncio.gather(*(ask(client, f"shared-{n}") for n in range(TURNS)))
    assert all(end["text"] for end in ends)

    async def shared() -> list[int]:
        after = await runs_over(up)
        counts = [len(now - then) for now, then in zip(after, before, strict=True)]
        return counts if sum(counts) >= TURNS else []

    counts = await eventually(shared, reason="each turn is in a worker's log", timeout_s=10)
    assert sum(counts) == TURNS
    assert min(counts) >= TURNS // WORKERS // 2, counts


async def test_killing_a_worker_loses_nothing(up: Stack, client: httpx.AsyncClient, control: Control) -> None:
    await control.reset()
    await control.speed(token_gap_ms=60)
    asked = [asyncio.create_task(ask(client, f"killed-{n}")) for n in range(2 * WORKERS)]

    async def all_busy() -> bool:
        busy = [record for record in await control.requests() if record["outcome"] == "in_flight"]
        return len(busy) == WORKERS

    await eventually(all_busy, reason="each worker is in mid-answer", timeout_s=20)
    victim = (await up.containers("inference"))[0]
    await run("docker", "kill", victim["Id"])
    await control.speed(**QUICK)
    ends = await asyncio.gather(*asked)
    assert all(end["text"] for end in ends)
    assert sorted(end["attempt"] for end in ends) == [1] * (2 * WORKERS - 1) + [2]


async def test_all_stop_when_told_and_start_again_with_what_they_knew(up: Stack, client: httpx.AsyncClient) -> None:
    before = (await client.get("/v1/sessions/name:shared-0/messages")).json()
    await up.compose("stop")
    ends = {each["Name"].split("-")[-2]: each["State"]["ExitCode"] for each in await up.containers()}
    # SIGKILL would be 137. The stand-in ends as one does that was told to, and the killed worker is gone.
    assert {name: code for name, code in ends.items() if name not in ("standin", "inference")} == dict.fromkeys(
        ("nats", "history", "gateway", *ONE_SHOTS), 0
    )
    assert ends["standin"] == 143
    await up.compose("up", "--detach", "--wait", "--wait-timeout", "120", "--scale", f"inference={WORKERS}")
    assert (await client.get("/v1/sessions/name:shared-0/messages")).json() == before
