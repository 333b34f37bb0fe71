"""The choice of the model server: each rule of CHATLOG_MODEL_SERVER, against real servers and silent ports."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from services.operator import choice
from services.operator.choice import NoModelServer, choose
from services.operator.settings import load_all
from tests.standins import Standin, standin_process

VARIABLES = ("MODEL_SERVER", "OLLAMA_URL", "OPENAI_URL", "OPENAI_API_KEY", "MODEL")


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(f"CHATLOG_{name}", raising=False)
    monkeypatch.setattr(choice, "DEFAULT_OLLAMA_URL", closed_url())


def closed_url() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


async def chosen(**flags: Any) -> choice.Choice:
    return await asyncio.to_thread(lambda: choose(load_all(flags)))


def answers_by_default(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "DEFAULT_OLLAMA_URL", standin.ollama_url)


async def test_nobody_there_is_the_box_and_says_that_it_is_small() -> None:
    found = await chosen()
    assert (found.kind, found.url, found.model) == ("box", "http://127.0.0.1:8703/v1", "smollm2:135m")
    assert "small" in found.notes[0]
    assert "Ollama" in found.notes[0]


async def test_an_ollama_that_answers_is_taken_with_its_first_model(monkeypatch: pytest.MonkeyPatch) -> None:
    async with standin_process(models=["llama3.2:1b"]) as standin:
        answers_by_default(standin, monkeypatch)
        found = await chosen()
        assert (found.kind, found.url, found.model) == ("ollama", standin.ollama_url, "llama3.2:1b")
        assert found.notes == ()
        lacking = await chosen(model="qwen3:8b")
        assert lacking.notes == ("this Ollama lacks the model: ollama pull qwen3:8b",)
        assert (await chosen(model_server="box")).kind == "box"


async def test_a_url_that_is_set_is_taken() -> None:
    async with standin_process(models=["small:1b"]) as standin:
        by_ollama = await chosen(ollama_url=standin.ollama_url + "/")
        assert (by_ollama.kind, by_ollama.url, by_ollama.model) == ("ollama", standin.ollama_url, "small:1b")
        by_openai = await chosen(openai_url=standin.openai_url)
        assert (by_openai.kind, by_openai.url, by_openai.model) == ("openai", standin.openai_url, "small:1b")
        with pytest.raises(NoModelServer, match="both set"):
            await chosen(openai_url=standin.openai_url, ollama_url=standin.ollama_url)
        both = await chosen(openai_url=standin.openai_url, ollama_url=standin.ollama_url, model_server="ollama")
        assert both.kind == "ollama"


async def test_who_was_asked_for_and_is_silent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = closed_url()
    with pytest.raises(NoModelServer, match=f"no Ollama answers at {nobody}, which CHATLOG_OLLAMA_URL"):
        await chosen(ollama_url=nobody)
    with pytest.raises(NoModelServer, match=r"CHATLOG_MODEL_SERVER=ollama .*ollama serve"):
        await chosen(model_server="ollama")
    with pytest.raises(NoModelServer, match=f"no answer from {nobody}/v1"):
        await chosen(openai_url=f"{nobody}/v1")
    with pytest.raises(NoModelServer, match=r"must end in /v1, .*\(is not set\)"):
        await chosen(model_server="openai")
    monkeypatch.setenv("CHATLOG_OPENAI_URL", f"{nobody}/api")
    with pytest.raises(NoModelServer, match="must end in /v1"):
        await chosen()


async def test_a_server_that_is_no_ollama_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with standin_process() as standin:
        monkeypatch.setattr(choice, "DEFAULT_OLLAMA_URL", standin.control_url)
        assert (await chosen()).kind == "box"


async def test_a_refused_key_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async with standin_process(models=["small:1b"], api_key="right") as standin:
        found = await chosen(openai_url=standin.openai_url)
        assert found.notes == (f"{standin.openai_url} refuses the key (HTTP 401): set CHATLOG_OPENAI_API_KEY",)
        monkeypatch.setenv("CHATLOG_OPENAI_API_KEY", "right")
        assert (await chosen(openai_url=standin.openai_url)).notes == ()


async def test_the_stand_in_runs_only_where_it_is_asked_for() -> None:
    assert (await chosen(model_server="standin")).kind == "standin"
