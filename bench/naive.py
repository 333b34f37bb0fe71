"""Beside the road: what a developer writes first: FastAPI and httpx, a conversation in memory, tokens as they come.

Owns nothing that lasts: no log, no queue, no second watcher, and an answer is gone with its process or its client. It
is what Chatlog is measured against; one shared httpx client, as httpx's own documentation advises.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import StreamingResponse

app = FastAPI()
client = httpx.AsyncClient(base_url=os.environ.get("NAIVE_MODEL_URL", ""), timeout=None, trust_env=False)
conversations: dict[str, list[dict[str, str]]] = defaultdict(list)


class Message(BaseModel):
    """What is sent to it."""

    text: str
    model: str
    max_tokens: int


@app.post("/chats/{chat}")
async def send(chat: str, message: Message) -> StreamingResponse:
    conversations[chat].append({"role": "user", "content": message.text})
    return StreamingResponse(_answer(chat, message), media_type="text/event-stream")


async def _answer(chat: str, message: Message) -> AsyncIterator[str]:
    said: list[str] = []
    asked: dict[str, Any] = {
        "model": message.model,
        "messages": conversations[chat],
        "options": {"num_predict": message.max_tokens},
    }
    async with client.stream("POST", "/api/chat", json=asked) as response:
        async for line in response.aiter_lines():
            text = json.loads(line)["message"]["content"]
            if text:
                said.append(text)
                yield f"data: {json.dumps({'text': text})}\n\n"
    conversations[chat].append({"role": "assistant", "content": "".join(said)})
    yield "data: [DONE]\n\n"


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        sys.stdout.write(f"{listening.getsockname()[1]}\n")
        sys.stdout.flush()
        config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="error", access_log=False)
        uvicorn.Server(config).run(sockets=[listening])
