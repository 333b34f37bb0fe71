"""The README's own commands, as they are written there, on `chatlog up` with the small real model."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from services.inference.models.factory import open_model_server
from services.inference.models.port import ModelRequest, Patience, Piece
from tests.operated import Up, operated
from tests.pages import README, at, block, run
from tests.polling import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(500)]

MODEL = "smollm2:135m"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Up]:
    async with operated(tmp_path_factory.mktemp("readme"), model_server="box") as stack:
        await stack.start()
        await stack.ready()
        yield stack


async def test_one_curl_streams_a_real_model_s_answer(up: Up) -> None:
    printed = await run(up, "bash", "-ec", at(up, block(README, "sh", "curl")))
    frames = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("data: ")]
    tokens = [frame for frame in frames if frame["type"] == "token"]
    assert len(tokens) > 1, printed
    end = frames[-1]["event"]
    assert end["type"] == "answer_completed"
    assert end["data"]["text"] == "".join(token["text"] for token in tokens)
    assert end["data"]["model"] == MODEL
    assert end["data"]["usage"]["completion_tokens"] > 0


async def test_the_websocket_client_holds_a_conversation_of_three_turns(up: Up, tmp_path: Path) -> None:
    client = block(README, "python", "websockets.connect")
    assert len([line for line in client.splitlines() if line]) <= 15
    await run(up, "bash", "-ec", at(up, block(README, "sh", "curl")).splitlines()[0])
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
