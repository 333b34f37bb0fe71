"""The profile `ollama`, which runs where none is named: by `docker compose config`, and by the stand-in under its name.

It is not run with Ollama here: its image is on a registry. What Ollama answers is recorded, and tests/recordings hold
the stand-in to it; that its container starts with a read-only root and without capabilities is not shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.containers.engine import needs_engine, needs_stacks
from tests.containers.stacks import clean_environment, run, stack
from tests.pages import README, block
from tests.polling import eventually

pytestmark = pytest.mark.timeout(600)

CORE = {"credentials", "nats", "provision", "history", "gateway"}
STANDIN_AS_OLLAMA = Path(__file__).with_name("ollama")


async def config(*profile: str) -> dict[str, Any]:
    """The services that run under a profile, each as compose understands it."""
    told = await run("docker", "compose", *profile, "config", "--format", "json", environment=clean_environment())
    services: dict[str, Any] = json.loads(told)["services"]
    return services


@needs_engine
async def test_each_profile_has_its_own_model_server_and_ollama_is_the_default() -> None:
    assert set(await config()) == CORE | {"inference", "ollama", "model-pull"}
    assert set(await config("--profile", "box")) == CORE | {"inference-box", "box"}
    assert set(await config("--profile", "standin")) == CORE | {"inference", "standin"}


@needs_engine
async def test_ollama_and_the_stand_in_are_asked_under_one_name() -> None:
    services = await config("--profile", "ollama", "--profile", "standin")
    assert services["inference"]["environment"]["CHATLOG_OLLAMA_URL"] == "http://model:11434"
    for server in ("ollama", "standin"):
        assert services[server]["networks"]["default"]["aliases"] == ["model"]
    assert services["ollama"]["volumes"][0]["target"] == "/root/.ollama"
    assert services["model-pull"]["entrypoint"] == ["ollama", "pull", "smollm2:135m"]
    assert services["model-pull"]["depends_on"]["ollama"]["condition"] == "service_healthy"


@needs_engine
async def test_every_service_is_locked_down_pinned_and_unpublished() -> None:
    services = await config("--profile", "*")
    assert set(services) == CORE | {"inference", "ollama", "model-pull", "inference-box", "box", "standin"}
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["tmpfs"] == ["/tmp"], name
        assert service["stop_grace_period"] == "20s", name
        assert re.fullmatch(r"chatlog(-box)?|[a-z/]+:[0-9][0-9.]+(-alpine)?", service["image"]), name
        published = {port["host_ip"] for port in service.get("ports", [])}
        assert published == ({"127.0.0.1"} if name == "gateway" else set()), name


@pytest_asyncio.fixture
async def standin_under_ollama_s_name() -> AsyncIterator[None]:
    """Its tag, and only its tag, is gone afterwards; an Ollama that is here is not touched."""
    image = (await config())["ollama"]["image"]
    if (await run("docker", "image", "ls", "-q", image)).strip():
        pytest.skip(f"{image} is here: not replaced by the stand-in")
    await run("docker", "compose", "--profile", "ollama", "build", "credentials", environment=clean_environment())
    await run("docker", "build", "--tag", image, str(STANDIN_AS_OLLAMA))
    yield
    await run("docker", "image", "rm", image)


@needs_stacks
@pytest.mark.usefixtures("standin_under_ollama_s_name")
async def test_the_default_profile_answers_the_readme_s_curl_with_the_stand_in_in_ollama_s_place() -> None:
    async with stack("ollama", wait=False) as up:

        async def healthy() -> bool:
            found = [each["State"] for each in await up.containers()]
            return all(state.get("Health", {}).get("Status") == "healthy" for state in found if state["Running"])

        async def pulled() -> bool:
            [pull] = await up.containers("model-pull")
            state = (pull["State"]["Status"], pull["State"]["ExitCode"])
            return state == ("exited", 0)

        await eventually(pulled, reason="the model is pulled", timeout_s=60)
        await eventually(healthy, reason="all are healthy", timeout_s=60)
        commands = block(README, "sh", "curl").replace("localhost:8700", up.gateway.removeprefix("http://"))
        printed = await run("bash", "-ec", commands)
        frames = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("data: ")]
        assert frames[-1]["event"]["type"] == "answer_completed"
