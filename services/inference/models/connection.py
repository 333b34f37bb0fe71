"""Step 12, inference/models: one HTTP client to one model server, for one slot, every option explicit.

Owns the socket: a request's body as lines, a question's JSON, and that closing the generator closes the connection, the
only cancel that model servers know. Must never decide what a line means, nor try anything again: the worker does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from functools import cache
from typing import Any

import httpx

from contracts.base import compact
from services.inference.models.failures import refused, translated
from services.inference.models.lines import LineSplitter
from services.inference.models.port import ModelFailure, ModelRequest
from services.inference.models.reading import read_object
from services.inference.models.silence import Silence

# A server that is there accepts in milliseconds; behind a sleepy proxy or abroad, within a second or two.
CONNECT_TIMEOUT_S = 5.0
# Time for the server to take the next part of a long request; 1 MB goes over in far less.
WRITE_TIMEOUT_S = 30.0
# An answer, and beside it a question about the models; a third connection would be a mistake of ours.
MAX_CONNECTIONS = 2
# No connection is used twice: llama.cpp closes its end after each stream without saying so, and 10 of 80 requests that
# were sent into such a connection were lost (measured); a new one on loopback costs a fraction of a millisecond.
MAX_IDLE_CONNECTIONS = 0
# What a server can run now is known to it at once (recorded: Ollama answers in 1 ms even while it loads).
ASK_TIMEOUT_S = 4.0
# A list of some thousand models; a hosted gateway's is under 1 MiB.
MAX_LIST_BYTES = 8 * 1024 * 1024
# Of an error's body no more is read: enough for llama.cpp's words, a bound on a proxy's page.
MAX_ERROR_BYTES = 64 * 1024
ERROR_BODY_TIMEOUT_S = 5.0


class Connection:
    """The way to one server. base_url is the root for Ollama and ends in /v1 (or the like) for OpenAI's API."""

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        self.base_url = _checked(base_url)
        # Compressed streams would wait in the compressor, so nothing but identity is asked for.
        headers = {"accept-encoding": "identity", "content-type": "application/json", "user-agent": "chatlog"}
        if api_key:
            headers["authorization"] = f"Bearer {_header_safe(api_key)}"
        self._client = httpx.AsyncClient(
            base_url=self.base_url,
            headers=headers,
            # No read timeout: Silence is the one clock of an answer, ASK_TIMEOUT_S that of a question.
            timeout=httpx.Timeout(connect=CONNECT_TIMEOUT_S, read=None, write=WRITE_TIMEOUT_S, pool=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(
                max_connections=MAX_CONNECTIONS,
                max_keepalive_connections=MAX_IDLE_CONNECTIONS,
                keepalive_expiry=0,
            ),
            verify=_tls(),
            http1=True,
            http2=False,
            trust_env=False,  # a proxy variable or a .netrc must not send conversations somewhere else
            follow_redirects=False,  # nor may a redirect
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def lines(self, path: str, body: dict[str, Any], silence: Silence) -> AsyncGenerator[bytes]:
        """The answer's lines as they come. It never just ends: an end before the caller leaves is a ModelFailure."""
        request = self._client.build_request("POST", path, content=compact(body))
        with translated():
            response = await silence.within(self._client.send(request, stream=True))
        try:
            if response.status_code != 200:
                silence.at_most(ERROR_BODY_TIMEOUT_S)
                raise refused(response.status_code, response.headers, await _error_body(response, silence))
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ModelFailure("model_error", "a compressed answer, though none was asked for")
            splitter = LineSplitter()
            chunks = response.aiter_raw()
            with translated():
                while (chunk := await silence.within(anext(chunks, None))) is not None:
                    for line in splitter.feed(chunk):
                        yield line
            for line in splitter.last():
                yield line
            raise _ended(response, silence)
        finally:
            await response.aclose()

    async def ask(self, path: str) -> dict[str, Any]:
        """The JSON object at path. Raises ModelFailure, also when it does not come within a few seconds."""
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                with translated():
                    async with self._client.stream("GET", path) as response:
                        body = await _read(response, MAX_LIST_BYTES)
        except TimeoutError:
            raise ModelFailure("model_stalled", f"no answer to GET {path} in {ASK_TIMEOUT_S} s") from None
        if response.status_code == 404:
            raise ModelFailure("model_refused", f"GET {path}: status 404, this is another kind of server")
        if response.status_code != 200:
            raise refused(response.status_code, response.headers, body)
        return read_object(body)


def check_request(request: ModelRequest) -> None:
    """Refuse what servers take for something else: Ollama loads a model, llama.cpp answers nonsense (both measured)."""
    if not request.model or not request.messages:
        raise ModelFailure("model_refused", "a request needs a model and a message")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise ModelFailure("model_refused", "max_tokens below 1 would mean no limit")


@cache
def _tls() -> ssl.SSLContext:
    """One for all clients of the process: reading the certificates takes 20 ms (measured), for each slot again."""
    return httpx.create_ssl_context(verify=True, trust_env=False)


async def _error_body(response: httpx.Response, silence: Silence) -> bytes:
    """As much of an error's body as comes: its status alone already says that it failed."""
    try:
        with translated():
            return await silence.within(_read(response, MAX_ERROR_BYTES))
    except ModelFailure:
        return b""


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            return body[:max_bytes]
    return body


def _ended(response: httpx.Response, silence: Silence) -> ModelFailure:
    """The body is over and the server has not said that the answer is whole."""
    if "transfer-encoding" not in response.headers and "content-length" not in response.headers:
        return ModelFailure("model_lost", "the connection ended a body of unknown length", again=True)
    # After a piece the model would end so again (recorded: Ollama's repeat guard); before one it may have been chance.
    return ModelFailure("model_cut", "a clean end without the server's own word", again=not silence.broken)


def _checked(base_url: str) -> str:
    """base_url, if a client can be made of it. Raises ValueError, for whoever set it."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise ValueError("a model server's URL is http(s)://host[:port][/path], without a user")
    return base_url.rstrip("/")


def _header_safe(api_key: str) -> str:
    if not (api_key.isascii() and api_key.isprintable()):
        raise ValueError("an API key holds printable ASCII only")
    return api_key
