"""`docker compose --profile box up`: the README's own curl, answered by the small real model."""

from __future__ import annotations

import json

import pytest

from tests.containers.engine import needs_stacks
from tests.containers.stacks import run, stack
from tests.e2e.test_readme import MODEL
from tests.pages import README, block

pytestmark = [needs_stacks, pytest.mark.timeout(900)]

ASK_WITHOUT_KEY = "import urllib.request; urllib.request.urlopen('http://box:8703/v1/models')"


async def test_the_readme_s_curl_is_answered_by_the_real_model_that_asks_for_its_key() -> None:
    async with stack("box") as up:
        commands = block(README, "sh", "curl").replace("localhost:8700", up.gateway.removeprefix("http://"))
        printed = await run("bash", "-ec", commands)
        frames = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("data: ")]
        end = frames[-1]["event"]
        assert end["type"] == "answer_completed"
        assert end["data"]["model"] == MODEL
        assert end["data"]["text"] == "".join(frame["text"] for frame in frames if frame["type"] == "token")
        assert end["data"]["usage"]["completion_tokens"] > 0
        with pytest.raises(AssertionError, match="HTTP Error 401"):
            await up.compose("exec", "-T", "inference-box", "python", "-c", ASK_WITHOUT_KEY)
        await up.compose("stop")
        ends = {each["Name"].split("-")[-2]: each["State"]["ExitCode"] for each in await up.containers()}
        assert set(ends.values()) == {0}, ends
