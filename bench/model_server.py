"""Beside the road: the model server of the relay's figures: each token is the moment at which it was written.

Owns as little work per token as Python allows, so that the relay behind it is what is measured: services/standin,
which imitates servers down to their faults, is busy with 32 000 tokens/s and cannot show a faster relay. Speaks just
enough of Ollama's wire and of OpenAI's. A model's name says its pace. Must never put two tokens into one write.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from typing import cast

import uvloop


@dataclass(frozen=True)
class Pace:
    """When the first token comes and how long after it the next; both 0: one token per turn of the loop."""

    first_s: float
    gap_s: float


PACES = {
    # A small prompt and a model of 50 tokens/s, as in the facts that the targets come from.
    "paced:1": Pace(0.05, 0.02),
    # The same without a prompt to read: nothing hides the time that accepting and claiming take.
    "eager:1": Pace(0.0, 0.02),
    "flat:1": Pace(0.0, 0.0),
    # More frames than a gateway passes on to 500 watchers; and what one watcher reads with.
    "burst:1": Pace(0.0, 0.0025),
    "steady:1": Pace(0.0, 0.05),
}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


class Connection(asyncio.Protocol):
    """One connection, which serves one request."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._gone = False
        self._left = 0
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _error: Exception | None) -> None:
        self._gone = True

    def data_received(self, received: bytes) -> None:
        self._received += received
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if found and len(body) >= int(length or 0):
            self._received = b""
            self._serve(head.split(b" ")[1].decode(), json.loads(body) if body else {})

    def _serve(self, path: str, asked: dict[str, object]) -> None:
        names = sorted(PACES)
        match path:
            case "/api/tags":
                self._tell({"models": [{"name": name} for name in names]})
            case "/api/ps":
                self._tell({"models": [{"name": name, "context_length": 4096} for name in names]})
            case "/v1/models":
                self._tell({"object": "list", "data": [{"id": name, "max_model_len": 4096} for name in names]})
            case "/api/chat":
                options = asked["options"]
                assert isinstance(options, dict)
                self._answer(str(asked["model"]), int(options["num_predict"]), openai=False)
            case "/v1/chat/completions":
                self._answer(str(asked["model"]), int(str(asked["max_tokens"])), openai=True)
            case _:
                self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                self._transport.close()

    def _tell(self, value: object) -> None:
        body = json.dumps(value).encode()
        kind = b"Content-Type: application/json\r\nConnection: close\r\n"
        self._transport.write(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (kind, len(body)) + body)
        self._transport.close()

    def _answer(self, model: str, tokens: int, *, openai: bool) -> None:
        self._left = tokens
        self._pace = PACES[model]
        self._openai = openai
        self._transport.write(HEAD % (b"text/event-stream" if openai else b"application/x-ndjson"))
        self._due = self._loop.time() + self._pace.first_s
        self._loop.call_at(self._due, self._token)

    def _token(self) -> None:
        if self._gone:
            return
        if self._left == 0:
            self._transport.write(chunk(OPENAI_END if self._openai else OLLAMA_END) + b"0\r\n\r\n")
            self._transport.close()
            return
        self._left -= 1
        self._transport.write(chunk((OPENAI_TOKEN if self._openai else OLLAMA_TOKEN) % time.monotonic_ns()))
        self._due += self._pace.gap_s
        if self._pace.gap_s:
            self._loop.call_at(self._due, self._token)
        else:
            self._loop.call_soon(self._token)


OLLAMA_TOKEN = b'{"model":"m","message":{"role":"assistant","content":"@%d"},"done":false}\n'
OLLAMA_END = b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}\n'
OPENAI_TOKEN = b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"@%d"}}]}\n\n'
OPENAI_END = (
    b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
