"""The box as a process: its doors, its key, its end, and what it says when it cannot run."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from services.inference.models.factory import open_model_server
from services.inference.models.port import ModelRequest, Patience
from tests.boxes import MODEL, START_TIMEOUT_S, Box, box, environment, spawn
from tests.polling import eventually

PATIENT = Patience(first_token_s=30, between_tokens_s=30)
SECRET_TEXT = "a sentence that nobody else writes"
STORY = ModelRequest(MODEL, (("user", f"Tell me a long story about {SECRET_TEXT}."),), seed=1)
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": SECRET_TEXT}], "max_tokens": 1}
EVIL = {"origin": "http://evil.example", "access-control-request-method": "POST"}


async def test_its_doors(tmp_path: Path) -> None:
    """One box for all of them: without the key only /health, no web page gets in, and no text gets into its log."""
    async with box(tmp_path, slots=2) as running:
        await check_key(running)
        await check_foreign_pages(running)
        slots = (await running.get("/slots")).json()
        assert [slot["n_ctx"] for slot in slots] == [4096, 4096]
        assert "llamacpp" in (await running.get("/metrics")).text
        await check_log(running)


async def check_key(running: Box) -> None:
    for path in ("/slots", "/props", "/metrics", "/v1/models", "/models", "/tokenize", "/lora-adapters"):
        assert (await running.get(path, with_key=False)).status_code == 401, path
    assert (await running.get("/health", with_key=False)).status_code == 200
    assert (await running.get("/", with_key=False)).status_code in (401, 404)
    assert (await running.get("/")).status_code == 404  # no web UI
    assert running.api_key.encode() not in command_line(running.process.pid)
    assert running.api_key not in running.log


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


async def check_foreign_pages(running: Box) -> None:
    async with httpx.AsyncClient(base_url=running.url, headers=EVIL, trust_env=False, timeout=5) as page:
        simple = await page.post("/v1/chat/completions", content=b"{}", headers={"content-type": "text/plain"})
        assert simple.status_code == 401
        for answer in (simple, await page.get("/health"), await page.options("/v1/chat/completions")):
            assert answer.headers.get("access-control-allow-origin", "") == ""


async def check_log(running: Box) -> None:
    headers = {"authorization": f"Bearer {running.api_key}"}
    async with httpx.AsyncClient(base_url=running.url, headers=headers, trust_env=False, timeout=30) as client:
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        odd = [
            CHAT | {"messages": SECRET_TEXT},
            CHAT | {"messages": [{"role": "user", "content": SECRET_TEXT * 3000}]},
            CHAT | {"messages": [{"role": SECRET_TEXT}]},
        ]
        for body in odd:
            assert (await client.post("/v1/chat/completions", json=body)).status_code in (400, 500)
        broken = f'{{"messages": "{SECRET_TEXT}'.encode()
        assert (await client.post("/v1/chat/completions", content=broken)).status_code in (400, 500)
    assert SECRET_TEXT not in running.log


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_at_once_even_in_mid_answer(tmp_path: Path, by: signal.Signals) -> None:
    async with box(tmp_path) as running:
        server = open_model_server("openai", running.openai_url, running.api_key)
        items = server.answer(STORY, PATIENT)
        await anext(items)
        started = time.monotonic()
        assert await running.stop(by) == 0
        assert time.monotonic() - started < 5  # freeing llama.cpp's server would take 30 s
        await items.aclose()
        await server.aclose()


async def test_two_slots_answer_at_the_same_time(tmp_path: Path) -> None:
    async with box(tmp_path, slots=2) as running:
        servers = [open_model_server("openai", running.openai_url, running.api_key) for _ in range(2)]
        streams = [server.answer(STORY, PATIENT) for server in servers]
        await asyncio.gather(*(anext(stream) for stream in streams))
        assert await running.busy_slots() == 2
        await asyncio.gather(*(stream.aclose() for stream in streams))
        await asyncio.gather(*(server.aclose() for server in servers))


def refusal(log: Path, **settings: str) -> tuple[int, str]:
    """Exit code and what it said of a box that cannot run."""
    process = spawn(log, **settings)
    try:
        code = process.wait(START_TIMEOUT_S)
    finally:
        process.kill()
    return code, log.read_text()


def test_wrong_settings_are_one_line(tmp_path: Path) -> None:
    log = tmp_path / "box.log"
    assert refusal(log, port="0") == (
        2,
        "llamacpp: CHATLOG_BOX_API_KEY or CHATLOG_BOX_API_KEY_FILE: the box does not run without a key\n",
    )
    code, said = refusal(log, port="70000", api_key="k")
    assert (code, said.count("\n")) == (2, 1)
    assert "CHATLOG_BOX_PORT" in said


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, said = refusal(tmp_path / "box.log", port=port, api_key="k")
    assert code == 1
    assert f"llamacpp: CHATLOG_BOX_PORT: cannot listen on 127.0.0.1:{port}" in said


async def test_a_missing_library_is_one_line(tmp_path: Path) -> None:
    """The loader's own error, as a machine without libgomp1 gives it."""
    (tmp_path / "xllamacpp.py").write_text('raise ImportError("libgomp.so.1: cannot open shared object file")\n')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.llamacpp"),
        env=environment(port="0", api_key="k") | {"PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(), START_TIMEOUT_S)
    assert (process.returncode, said) == (4, b"llamacpp: libgomp.so.1 is missing: apt-get install libgomp1\n")


async def test_its_key_may_come_from_a_file_and_never_from_the_command_line(tmp_path: Path) -> None:
    key, log = tmp_path / "key", tmp_path / "box.log"
    key.write_text("from-a-file\n")
    running = Box(spawn(log, port="0", api_key_file=str(key)), log, "from-a-file")
    try:
        running.url = await eventually(running.address, reason="the box listens", timeout_s=START_TIMEOUT_S)
        assert (await running.get("/v1/models")).status_code == 200
    finally:
        await running.stop(signal.SIGKILL)
    flagged = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.llamacpp", "--box-api-key", "k"), env=environment(), stderr=subprocess.PIPE
    )
    await asyncio.wait_for(flagged.communicate(), START_TIMEOUT_S)
    assert flagged.returncode == 2
