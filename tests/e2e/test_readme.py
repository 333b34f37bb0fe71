"""The README's own commands, as they are written there, on `chatlog up` with the small real model."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from services.inference.models.factory import open_model_server
from services.inference.models.port import ModelRequest, Patience, Piece
from tests.operated import ROOT, Up, operated
from tests.polling import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(500)]

README = (ROOT / "README.md").read_text()
MODEL = "smollm2:135m"
# Two cores and a suite beside it: alone it is a second or two.
COMMAND_TIMEOUT_S = 240.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    async with operated(tmp_path_factory.mktemp("readme"), model_server="box") as stack:
        await stack.start()
        await stack.ready()
        yield stack


def block(language: str, words: str) -> str:
    """The README's code block that has these words."""
    [found] = [each for each in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if words in each]
    return str(found)


async def run(up: Up, *command: str) -> str:
    """What a command prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, env=up.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), COMMAND_TIMEOUT_S)
    assert process.returncode == 0, err.decode()
    return out.decode()


def at(up: Up, text: str) -> str:
    """The same words for the test's own port."""
    return text.replace("localhost:8700", up.gateway.removeprefix("http://"))


async def test_one_curl_streams_a_real_model_s_answer(up: Up) -> None:
    printed = await run(up, "bash", "-ec", at(up, block("sh", "curl")))
    frames = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("data: ")]
    tokens = [frame for frame in frames if frame["type"] == "token"]
    assert len(tokens) > 1, printed
    end = frames[-1]["event"]
    assert end["type"] == "answer_completed"
    assert end["data"]["text"] == "".join(token["text"] for token in tokens)
    assert end["data"]["model"] == MODEL
    assert end["data"]["usage"]["completion_tokens"] > 0


async def test_the_websocket_client_holds_a_conversation_of_three_turns(up: Up, tmp_path: Path) -> None:
    client = block("python", "websockets.connect")
    assert len([line for line in client.splitlines() if line]) <= 15
    await run(up, "bash", "-ec", at(up, block("sh", "curl")).splitlines()[0])
    script = tmp_path / "chat.py"
    script.write_text(at(up, client))
    printed = await run(up, sys.executable, str(script))
    answers = [line for line in printed.splitlines() if line.strip()]
    assert len(answers) >= 3, printed


async def test_closing_the_stream_in_mid_answer_frees_the_model_s_slot(up: Up) -> None:
    """The only cancel that a model server knows; asked of the box's own /slots."""
    url = f"http://127.0.0.1:{up.environment['CHATLOG_BOX_PORT']}"
    key = json.loads((up.data / "secrets.json").read_text())["box_api_key"]
    server = open_model_server("openai", f"{url}/v1", api_key=key)
    request = ModelRequest(MODEL, (("user", "Count from one to five hundred, in words."),), seed=7, max_tokens=2000)
    async with httpx.AsyncClient(trust_env=False, headers={"Authorization": f"Bearer {key}"}) as client:

        async def busy() -> int:
            slots = (await client.get(f"{url}/slots")).json()
            return sum(slot["is_processing"] for slot in slots)

        stream = server.answer(request, Patience(first_token_s=60, between_tokens_s=60))
        assert isinstance(await anext(stream), Piece)
        assert await busy() == 1
        await stream.aclose()

        async def free() -> bool:
            return await busy() == 0

        await eventually(free, reason="the slot is free", timeout_s=60)
    await server.aclose()
