"""Beside the road, gateway/api/documents: what the doors and subjects are, for people and programs, without a network.

Owns the pages /, /docs and /asyncapi and the documents behind them. Must never load anything from another host.
"""

from __future__ import annotations

import html
import json
from functools import cache
from pathlib import Path

import fastapi_offline
from fastapi import Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response

from services.gateway.api.subjects import asyncapi_document
from services.gateway.intake import Refused
from services.runtime.version import VERSION

_FRONT = f"""\
Chatlog {VERSION}

/docs      the HTTP routes, to read and to try
/asyncapi  the subjects that the services speak on
README.md  how to talk to it
"""
STATIC = Path(fastapi_offline.__file__).parent / "static"
# By name, not by path: no value of a client's reaches the file system.
STATIC_FILES = {name: STATIC / name for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")}


async def front() -> PlainTextResponse:
    """Where to go from here."""
    return PlainTextResponse(_FRONT)


async def openapi(request: Request) -> JSONResponse:
    """The HTTP doors."""
    return JSONResponse(request.app.openapi())


async def openapi_page() -> HTMLResponse:
    """The HTTP doors, to read and to try."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Chatlog: HTTP",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon.png",
    )


async def static_file(name: str) -> Response:
    """The page's own files."""
    path = STATIC_FILES.get(name)
    if path is None:
        raise Refused("not_found")
    return FileResponse(path)


async def asyncapi() -> Response:
    """The subjects that the services speak on."""
    return Response(asyncapi_document(), media_type="application/json")


async def asyncapi_page() -> HTMLResponse:
    """The same, to read."""
    return HTMLResponse(_rendered())


@cache
def _rendered() -> str:
    """One page, no script: channels with who says what on them, and the messages' schemas."""
    document = json.loads(asyncapi_document())
    rows = "\n".join(
        f"<tr><td><code>{html.escape(channel['address'])}</code></td>"
        f"<td>{html.escape(channel.get('description', ''))}</td></tr>"
        for channel in document["channels"].values()
    )
    schemas = "\n".join(
        f"<details><summary><code>{html.escape(name)}</code></summary>"
        f"<pre>{html.escape(json.dumps(schema, indent=2))}</pre></details>"
        for name, schema in sorted(document["components"]["schemas"].items())
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Chatlog: subjects</title>"
        "<style>body{font:16px/1.5 system-ui;max-width:70rem;margin:2rem auto;padding:0 1rem}"
        "td{border-top:1px solid #ccc;padding:.4rem;vertical-align:top}pre{overflow:auto}</style>"
        f"<h1>Subjects</h1><p>{html.escape(document['info']['description'])} "
        '<a href="/asyncapi.json">asyncapi.json</a></p>'
        f"<table>{rows}</table><h2>Messages</h2>{schemas}"
    )
