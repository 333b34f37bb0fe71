"""Beside the road: Ollama's wire: its routes and refusals, its plain pages, and where /api/chat goes.

It owns what 0.32.15 was recorded to answer on each route. It must never be asked by anything but a test, a benchmark
or a stack that was told to run on the stand-in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from services.standin import gojson, ollama_pages
from services.standin.faults import Asked, FaultBook, Plan, Route
from services.standin.gojson import Unmarshal
from services.standin.hosts import HostRule, origin_allowed
from services.standin.model import Catalogue, full_name
from services.standin.ollama_chat import OllamaChat
from services.standin.scheduler import Scheduler
from services.standin.strikes import Strikes, Struck, http_date
from services.standin.wire import Headers, Reply, Request

VERSION: Final = "0.32.15"
JSON: Final = "application/json; charset=utf-8"
TEXT: Final = "text/plain; charset=utf-8"

# With the models as this request may see them.
Page = Callable[[Request, Reply, Catalogue], Awaitable[None]]


class OllamaDoor:
    """Answers one request of Ollama's wire."""

    def __init__(
        self, catalogue: Catalogue, scheduler: Scheduler, book: FaultBook, chat: OllamaChat, host_allowed: HostRule
    ) -> None:
        self._catalogue = catalogue
        self._scheduler = scheduler
        self._book = book
        self._chat = chat
        self._host_allowed = host_allowed
        self._routes: dict[str, dict[str, tuple[Route, Page]]] = {
            "/": {"GET": ("root", self._root), "HEAD": ("root", self._root)},
            "/api/version": {"GET": ("version", self._version), "HEAD": ("version", self._version)},
            "/api/tags": {"GET": ("tags", self._tags), "HEAD": ("tags", self._tags)},
            "/api/ps": {"GET": ("ps", self._ps)},
            "/api/show": {"POST": ("show", self._show)},
            "/api/chat": {"POST": ("chat", self._answer)},
            "/v1/models": {"GET": ("models", self._models)},
        }

    async def handle(self, request: Request, reply: Reply) -> None:
        origin = request.headers.get("origin")
        if not self._host_allowed(request.headers.get("host")) or not origin_allowed(origin):
            await reply.whole(403, [("Date", http_date())])
            return
        methods = self._routes.get(request.path)
        if methods is None and request.path.startswith("/v1/models/"):
            methods = {"GET": ("models", self._model)}
        if methods is None:
            await reply.whole(404, _headers("text/plain"), b"404 page not found")
        elif request.method not in methods:
            allowed = [("Allow", ", ".join(sorted(methods))), *_headers("text/plain")]
            await reply.whole(405, allowed, b"405 method not allowed")
        else:
            await self._serve(methods[request.method], request, reply)

    async def _serve(self, route: tuple[Route, Page], request: Request, reply: Reply) -> None:
        name, page = route
        # A chat plans its own faults: they depend on its model and prompt.
        plan = Plan("ollama") if name == "chat" else self._book.plan(Asked("ollama", name))
        try:
            await Strikes(plan, reply, self._scheduler).before_headers()
        except Struck:
            return
        await page(request, reply, self._catalogue.without(plan.unlisted))

    async def _answer(self, request: Request, reply: Reply, _catalogue: Catalogue) -> None:
        await self._chat.handle(request, reply)

    async def _root(self, _request: Request, reply: Reply, _catalogue: Catalogue) -> None:
        await reply.whole(200, _headers(TEXT), b"Ollama is running")

    async def _version(self, _request: Request, reply: Reply, _catalogue: Catalogue) -> None:
        await reply.whole(200, _headers(JSON), gojson.encode({"version": VERSION}))

    async def _tags(self, request: Request, reply: Reply, catalogue: Catalogue) -> None:
        await reply.whole(200, _headers(JSON, request), gojson.encode(ollama_pages.tags(catalogue)))

    async def _ps(self, _request: Request, reply: Reply, _catalogue: Catalogue) -> None:
        models = [
            ollama_pages.loaded_model(runner.spec, runner.options.window, runner.expires_epoch_s)
            for runner in self._scheduler.loaded()
        ]
        await reply.whole(200, _headers(JSON), gojson.encode({"models": models}))

    async def _show(self, request: Request, reply: Reply, catalogue: Catalogue) -> None:
        try:
            asked = gojson.decode_object(request.body, "api.ShowRequest")
        except Unmarshal as error:
            await reply.whole(400, _headers(JSON), gojson.encode({"error": str(error)}))
            return
        name = str(asked.get("model") or asked.get("name") or "")
        spec = catalogue.find(name)
        if not name:
            await reply.whole(400, _headers(JSON), gojson.encode({"error": "model is required"}))
        elif spec is None:
            await reply.whole(404, _headers(JSON), gojson.encode({"error": f"model '{full_name(name)}' not found"}))
        else:
            await reply.start(200, _headers(JSON))
            await reply.write(gojson.encode(ollama_pages.show(spec)))
            await reply.end()

    async def _models(self, request: Request, reply: Reply, catalogue: Catalogue) -> None:
        await reply.whole(200, _headers("application/json"), gojson.encode(ollama_pages.v1_models(catalogue)) + b"\n")

    async def _model(self, request: Request, reply: Reply, catalogue: Catalogue) -> None:
        name = request.path.removeprefix("/v1/models/")
        spec = catalogue.find(name)
        page = ollama_pages.v1_model(spec) if spec else ollama_pages.v1_not_found(full_name(name))
        await reply.whole(200 if spec else 404, _headers("application/json"), gojson.encode(page) + b"\n")


def _headers(content_type: str, request: Request | None = None) -> Headers:
    """In Go's order: alphabetical, then Date."""
    origin = request.headers.get("origin") if request else None
    shared = [("Access-Control-Allow-Origin", origin)] if origin else []
    vary = [("Vary", "Origin")] if origin else []
    return [*shared, ("Content-Type", content_type), *vary, ("Date", http_date())]
