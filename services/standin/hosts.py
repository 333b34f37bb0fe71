"""Beside the road (core): which Host and Origin a listener of the stand-in serves: Ollama's own rule.

It owns the allow-list that keeps a web page from reaching the stand-in by DNS rebinding or from another origin. It
must never, on loopback, trust a name that a stranger can make resolve to this machine. Beyond loopback it serves every
Host, as Ollama does: there it is meant for others, under names that only they know (in compose: `model`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

LOCAL_SUFFIXES: Final = (".localhost", ".local", ".internal")
"""Names that no public DNS hands out; Ollama serves them too."""

LOCAL_ORIGINS: Final = ("localhost", "127.0.0.1", "0.0.0.0")
APP_SCHEMES: Final = ("app", "file", "tauri", "vscode-webview", "vscode-file")


HostRule = Callable[[str | None], bool]


def rule_of(listening_on: str) -> HostRule:
    """Which Hosts a listener on this address serves; a name that is no address is localhost."""
    try:
        beyond_loopback = not ipaddress.ip_address(listening_on).is_loopback
    except ValueError:
        beyond_loopback = False
    return _any_host if beyond_loopback else host_allowed


def host_allowed(host: str | None) -> bool:
    """True for an empty Host, localhost, a local address, or a name under a local suffix; ports do not matter."""
    if not host:
        return True
    try:
        name = (urlsplit(f"//{host}").hostname or "").lower()
        if name == "localhost" or name.endswith(LOCAL_SUFFIXES):
            return True
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified


def _any_host(_host: str | None) -> bool:
    return True


def origin_allowed(origin: str | None) -> bool:
    """True where there is no Origin (no web page asks), for pages served from this machine, and for desktop apps."""
    if origin is None:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in APP_SCHEMES or (parts.scheme in ("http", "https") and parts.hostname in LOCAL_ORIGINS)
