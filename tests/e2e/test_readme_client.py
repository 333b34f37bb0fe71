"""The README's WebSocket client where things are not as it hopes: no session, or an interrupt in mid-answer."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from tests.chatting import http, new_session
from tests.installations import Installation
from tests.pages import README, block

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLIENT_TIMEOUT_S = 60.0


async def start_client(running: Installation, folder: Path, session: str) -> asyncio.subprocess.Process:
    script = folder / "chat.py"
    words = block(README, "python", "websockets.connect").replace("name:road", session)
    script.write_text(words.replace("localhost:8700", running.http().removeprefix("http://")))
    return await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def run_client(running: Installation, folder: Path, session: str) -> tuple[int | None, str, str]:
    """Exit code, and what it printed and complained of."""
    process = await start_client(running, folder, session)
    out, err = await asyncio.wait_for(process.communicate(), CLIENT_TIMEOUT_S)
    return process.returncode, out.decode(), err.decode()


async def test_it_says_why_it_cannot(running: Installation, tmp_path: Path) -> None:
    """It ends with the refusal's code, instead of waiting for frames that never come."""
    code, _, complaint = await run_client(running, tmp_path, "name:nowhere")
    assert code != 0
    assert "session_unknown" in complaint


async def test_it_shows_the_answer_that_went_on_without_it(running: Installation, tmp_path: Path) -> None:
    """Ctrl-C in mid-answer is no traceback; started again, it shows that answer too, be it still running."""
    await running.standin.control.speed(token_gap_ms=20, answer_tokens=40)
    async with http(running.http()) as client:
        session_id = await new_session(client)
        process = await start_client(running, tmp_path, session_id)
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.read(1), CLIENT_TIMEOUT_S), "it shows the first tokens"
        process.send_signal(signal.SIGINT)
        _, complaint = await asyncio.wait_for(process.communicate(), CLIENT_TIMEOUT_S)
        assert (process.returncode, complaint) == (0, b"")
        code, printed, said = await run_client(running, tmp_path, session_id)
        listed = (await client.get(f"/v1/sessions/{session_id}/messages")).json()["messages"]
    assert code == 0, said
    answers = [message["text"] for message in listed if message["role"] == "assistant"]
    assert len(answers) >= 4
    assert printed == "".join(f"{text}\n" for text in answers)
