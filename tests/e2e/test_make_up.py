"""`make up` and `chatlog`: what a person sees, what is started again, that nothing is left behind, each refusal."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.operated import ROOT, Up, free_port, operated
from tests.polling import eventually

# A stack takes seconds to start and to stop, and some of these tests do both twice.
pytestmark = pytest.mark.timeout(240)


async def run(up: Up, *arguments: str) -> tuple[int, str]:
    """Another `chatlog` command with the same settings: its exit code and everything that it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.operator", *arguments,
        cwd=ROOT, env=up.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    return process.returncode, output.decode()


async def gateway_is_ready(up: Up) -> bool:
    async with httpx.AsyncClient() as client:
        try:
            return (await client.get(f"{up.gateway}/readyz")).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def empty_ollama() -> Iterator[str]:
    """An Ollama that was just installed: it answers, and has no model."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"models": [], "version": "0.32.15"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


async def test_make_up_shows_everything_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    async with operated(tmp_path, workers="2") as up:
        # In a group of its own, which gets the signal as a terminal would send it: make, its shell and chatlog at once.
        await up.start("setsid", "--wait", "make", "--no-print-directory", "up")
        await up.ready()
        output = up.output()
        for name in ("nats", "standin", "history", "inference-1", "inference-2", "gateway"):
            assert re.search(rf"^{name} +running +\S+ +\d+", output, re.MULTILINE), output
        assert f"data    {up.data}" in output
        assert "model   smollm2:135m, from standin" in output
        assert f"is at {up.gateway} " in output
        assert await gateway_is_ready(up)
        assert not any("secret" in command or "password" in command for command in up.process_ids().values())
        await status_says_how_it_is(up)
        first = up.pid_of("services.operator up")
        line = f"chatlog: `chatlog up` already runs on {up.data} (process {first}); `chatlog down` stops it\n"
        assert await run(up, "up") == (1, line)
        assert await gateway_is_ready(up)
        os.killpg(os.getpgid(first), signal.SIGINT)
        await up.ended()
        assert "\nstopped\n" in up.output()
        await up.all_gone()


async def status_says_how_it_is(up: Up) -> None:
    code, status = await run(up, "status")
    assert code == 0
    assert "broker  healthy, syncs always" in status
    assert "\ngateway ready\n" in status
    assert re.search(r"^CHAT_INTAKE +\d+ ", status, re.MULTILINE), status
    assert "lag 0, parked 0, " in status
    assert len(re.findall(r"ollama ok +1 +1 +smollm2:135m", status)) == 2, status
    for part in ("log", "views", "nats", "logs"):
        assert re.search(rf"^on disk .*\b{part} \d+(\.\d MiB| KiB)", status, re.MULTILINE), status


async def test_down_stops_it_and_a_second_start_finds_the_same_secrets(tmp_path: Path) -> None:
    async with operated(tmp_path) as up:
        await up.start()
        await up.ready()
        secrets = (up.data / "secrets.json").read_text()
        assert await run(up, "down") == (0, "stopped\n")
        assert await up.ended() == 0
        assert await run(up, "down") == (0, f"nothing runs on {up.data}\n")
        code, output = await run(up, "status")
        assert (code, output.startswith(f"chatlog: nothing runs on {up.data}")) == (1, True)
        up.output_file.unlink()
        await up.start()
        await up.ready()
        assert (up.data / "secrets.json").read_text() == secrets


async def running_as(up: Up, words: str) -> int:
    """The process with these words, once there is exactly one: one that was killed may still be on its way."""
    return await eventually(lambda: up.pid_of(words), reason=f"one process is {words}")


async def test_what_is_killed_is_started_again(tmp_path: Path) -> None:
    async with operated(tmp_path) as up:
        await up.start()
        await up.ready()
        for program in ("history", "gateway", "inference-1", "nats"):
            words = "nats-server" if program == "nats" else f"services.{program.removesuffix('-1')}"
            before = await running_as(up, words)
            os.kill(before, signal.SIGKILL)
            await up.says(f"{program} ended and was started again (process ")
            after = await running_as(up, words)
            assert after != before
        await eventually(lambda: gateway_is_ready(up), reason="the gateway is ready again", timeout_s=30)


async def test_whoever_is_killed_leaves_no_orphan(tmp_path: Path) -> None:
    async with operated(tmp_path) as up:
        await up.start()
        await up.ready()
        assert len(up.process_ids()) >= 7
        up.send(signal.SIGKILL)
        await up.ended()
        up.output_file.unlink()
        # At once: it waits for what is still stopping, instead of meeting its ports and locks.
        await up.start()
        await up.ready()
        os.kill(up.pid_of("supervisor.supervisord"), signal.SIGKILL)
        assert await up.ended() == 1
        assert "chatlog: the supervisor died" in up.output()
        await up.all_gone()


@pytest.mark.parametrize("name", ["GATEWAY", "NATS", "STANDIN"])
async def test_a_port_in_use_is_one_line(tmp_path: Path, name: str) -> None:
    async with operated(tmp_path) as up:
        port = int(up.environment[f"CHATLOG_{name}_PORT"])
        with socket.create_server(("127.0.0.1", port)):
            code, output = await run(up, "up")
        assert code == 1
        assert re.fullmatch(rf"chatlog: port {port} on 127\.0\.0\.1 for \w+: .* CHATLOG_{name}_PORT moves it\n", output)


async def test_an_ollama_without_a_model_says_what_to_pull_and_stays_up(tmp_path: Path) -> None:
    with empty_ollama() as url:
        async with operated(tmp_path, model_server="auto", ollama_url=url) as up:
            await up.start()
            await up.ready(model=False)
            assert "ollama pull smollm2:135m" in up.output()
            assert "model   none yet" in up.output()
            assert await gateway_is_ready(up)


async def test_a_model_server_that_was_asked_for_and_is_silent_is_an_error(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with operated(tmp_path, model_server="auto", ollama_url=url) as up:
        code, output = await run(up, "up")
        assert (code, output.count("\n")) == (1, 1)
        assert output.startswith(f"chatlog: no Ollama answers at {url}, which CHATLOG_OLLAMA_URL asks for")


async def test_wrong_settings_are_a_line_each_and_a_code_of_their_own(tmp_path: Path) -> None:
    async with operated(tmp_path, workers="none") as up:
        code, output = await run(up, "up")
        assert code == 2
        assert re.fullmatch(r"chatlog: CHATLOG_WORKERS \(environment\): Input should be a valid integer.*\n", output)
        assert (await run(up, "up", "--wokers", "2"))[0] == 2
        assert not up.data.exists()


async def test_a_nats_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    async with operated(tmp_path, nats_server="/nowhere/nats-server") as up:
        code, output = await run(up, "up")
        assert (code, output) == (
            1,
            "chatlog: CHATLOG_NATS_SERVER names /nowhere/nats-server, which is not a program\n",
        )


@pytest.mark.parametrize(
    ("python", "line"),
    [
        (None, "Chatlog needs Python 3.11 or newer: sudo apt-get install python3 python3-venv"),
        (
            'case "$*" in *version_info*) exit 1;; esac; echo Python 3.9.2',
            "Chatlog needs Python 3.11 or newer, this is Python 3.9.2",
        ),
        ('case "$*" in *ensurepip*) exit 1;; esac', "Chatlog needs Python's venv: sudo apt-get install python3-venv"),
    ],
)  # fmt: skip
def test_make_says_what_is_missing(tmp_path: Path, python: str | None, line: str) -> None:
    fake = tmp_path / "python3"
    if python is not None:
        fake.write_text(f"#!/bin/sh\n{python}\n")
        fake.chmod(0o755)
    done = subprocess.run(
        ["make", "up", f"PYTHON={fake}", f"VENV={tmp_path}/venv"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.startswith(line)
