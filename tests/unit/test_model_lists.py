"""Which models a server has, with which window, and what is wrong with one that cannot be asked."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from services.inference.models import connection
from services.inference.models.factory import Kind, open_model_server
from services.inference.models.port import Model, ModelFailure
from tests.raw_servers import Reply, page, raw_server, silent


async def models_of(kind: Kind, replies: dict[str, Reply]) -> list[Model]:
    async with raw_server(replies) as server:
        adapter = open_model_server(kind, server.url + ("/v1" if kind == "openai" else ""))
        try:
            return await adapter.models()
        finally:
            await adapter.aclose()


@pytest.mark.parametrize(
    ("entry", "window"),
    [
        ({"meta": {"n_ctx": 4096, "n_ctx_train": 8192}}, 4096),
        ({"max_model_len": 2048}, 2048),
        ({"context_length": 1024}, 1024),
        ({"context_window": 512}, 512),
        ({"meta": None, "max_model_len": "2048"}, None),
        ({}, None),
    ],
)
async def test_an_openai_servers_window_is_read_where_it_tells(entry: dict[str, Any], window: int | None) -> None:
    listed = await models_of(
        "openai", {"GET /v1/models": page({"data": [{"id": "a", "aliases": ["a", "b"], **entry}]})}
    )
    assert listed == [Model("a", window), Model("b", window)]


async def test_ollamas_window_is_known_of_loaded_models_only() -> None:
    tags = {"models": [{"name": "a:latest", "digest": "d1"}, {"name": "B:7b", "digest": "d2"}]}
    loaded = {"models": [{"name": "b:7b", "context_length": 4096}]}
    listed = await models_of("ollama", {"GET /api/tags": page(tags), "GET /api/ps": page(loaded)})
    assert listed == [Model("a:latest", None, "d1"), Model("B:7b", 4096, "d2")]


async def test_a_server_without_a_model_is_fine() -> None:
    nothing = page({"models": None})
    assert await models_of("ollama", {"GET /api/tags": nothing, "GET /api/ps": nothing}) == []
    assert await models_of("openai", {"GET /v1/models": page({"object": "list", "data": None})}) == []


@pytest.mark.parametrize(
    ("reply", "code", "again"),
    [
        (silent, "model_stalled", False),
        (page(b"<html>"), "model_error", True),
        (page({"models": 1, "data": 1}), "model_error", True),
        (page(b"", "401 Unauthorized"), "model_refused", False),
        (page(b"", "404 Not Found"), "model_refused", False),
        (page(b"", "503 Service Unavailable"), "model_busy", True),
    ],
)
@pytest.mark.parametrize("kind", ["ollama", "openai"])
async def test_a_server_that_cannot_be_asked_says_why(
    kind: Kind, reply: Reply, code: str, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ASK_TIMEOUT_S", 0.3)
    with pytest.raises(ModelFailure) as failure:
        await models_of(kind, {"GET /v1/models": reply, "GET /api/tags": reply, "GET /api/ps": reply})
    assert (failure.value.code, failure.value.again) == (code, again)


async def test_an_ollama_behind_an_openai_url_is_said_once() -> None:
    replies = {"GET /v1/models": page({"data": []}), "GET /api/version": page({"version": "0.32.15"})}
    async with raw_server(replies) as server:
        adapter = open_model_server("openai", f"{server.url}/v1/", "secret")
        with structlog.testing.capture_logs() as logs:
            for _ in range(2):
                await adapter.models()
        await adapter.aclose()
        assert [entry["event"] for entry in logs] == ["openai_url_is_ollama"]
        assert "authorization" not in server.asked("GET /api/version")[0].headers
