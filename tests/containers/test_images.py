"""Both images by themselves: a read-only root, a user that nobody knows, no capabilities, only what is needed."""

from __future__ import annotations

import pytest

from tests.containers.engine import needs_stacks
from tests.containers.stacks import clean_environment, run
from tests.polling import eventually

pytestmark = [needs_stacks, pytest.mark.timeout(900)]

LOCKED_DOWN = (
    *("--read-only", "--tmpfs", "/tmp", "--user", "4242:4242"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none"),
)
PROBE = ("python", "-I", "-S", "services/operator/probe.py")
# 0.03 s alone, 0.7 s with our packages: a bound between the two, of a processor's time and not of the clock's.
PROBE_CPU_S = 0.15
MEASURE = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
)


@pytest.mark.parametrize(
    ("image", "command", "asked", "ends"),
    [
        (
            "chatlog",
            ("python", "-m", "services.standin", "--host=0.0.0.0", "--port=11434"),
            ("127.0.0.1:11434", "/api/version"),
            143,
        ),
        ("chatlog-box", ("python", "-m", "services.llamacpp"), ("127.0.0.1:8703", "/health"), 0),
    ],
)
async def test_it_runs_as_anybody_writes_nowhere_and_stops_when_told(
    image: str, command: tuple[str, ...], asked: tuple[str, ...], ends: int
) -> None:
    await run("docker", "compose", "--profile", "box", "build", environment=clean_environment())
    key = ("--env", "CHATLOG_BOX_API_KEY=a-test-s-own")
    container = (await run("docker", "run", "--detach", *LOCKED_DOWN, *key, image, *command)).strip()
    try:

        async def healthy() -> str:
            return await run("docker", "exec", container, *PROBE, *asked)

        await eventually(healthy, reason=f"{image} answers its health check", timeout_s=30)
        told = await run("docker", "exec", container, "python", "-c", MEASURE, *PROBE, *asked)
        assert float(told.splitlines()[-1]) < PROBE_CPU_S
        await run("docker", "stop", "--time", "20", container)
        assert (await run("docker", "wait", container)).strip() == str(ends)
    finally:
        await run("docker", "rm", "--force", container)


async def test_the_command_and_only_what_it_needs_is_in_the_image() -> None:
    await run("docker", "compose", "build", "credentials", environment=clean_environment())
    assert (await run("docker", "run", "--rm", *LOCKED_DOWN, "chatlog", "chatlog", "--version")).strip()
    found = (await run("docker", "run", "--rm", *LOCKED_DOWN, "chatlog", "ls", "-A")).split()
    assert sorted(found) == ["contracts", "requirements.lock", "services", "venv"]
