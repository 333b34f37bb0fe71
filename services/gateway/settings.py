"""Step 2, gateway/settings: what an operator can set of the gateway.

Owns the defaults of the doors' bounds, each with its reason. Must never hold a bound that a contract fixes.
"""

from __future__ import annotations

import ipaddress

from pydantic import ValidationInfo, field_validator

from services.runtime.settings import SharedSettings, setting

MIB = 1024 * 1024


class GatewaySettings(SharedSettings):
    """CHATLOG_GATEWAY_*, and what all services share."""

    # Before gateway_host, whose check asks for this one and auth.
    open_beyond_loopback: bool = setting(
        False, unit="", reason="without keys, in a container whose port is published on its machine's loopback only"
    )
    gateway_host: str = setting(
        "127.0.0.1", unit="", reason="loopback only: without keys whoever reaches the gateway is its user"
    )
    gateway_port: int = setting(8700, unit="", reason="one port for all doors; 0: the system chooses", ge=0, le=65535)
    gateway_hosts: str = setting(
        "", unit="", reason="further Host values (name:port, with commas) that are this gateway, as behind a proxy"
    )
    gateway_origins: str = setting(
        "", unit="", reason="further Origins (scheme://name:port, with commas) whose pages may use this gateway"
    )
    gateway_body_bytes: int = setting(
        MIB, unit="bytes", reason="100 000 characters of any script fit; also of a WebSocket frame", ge=1024
    )
    gateway_header_bytes: int = setting(
        16 * 1024, unit="bytes", reason="request line and headers; browsers send one or two KiB", ge=1024
    )
    gateway_connections: int = setting(
        5000, unit="", reason="requests and sockets open at once: some 200 MiB at 40 KiB each", ge=1
    )
    gateway_client_frames: int = setting(
        2000, unit="frames", reason="live frames that wait for a slow client: 20 s of a fast model", ge=10
    )
    gateway_client_bytes: int = setting(
        MIB, unit="bytes", reason="the same bound in bytes; a page of the log does not count", ge=1024
    )
    gateway_client_stall_s: float = setting(
        30.0, unit="s", reason="a client that reads nothing of a page for so long is cut off", ge=0.1
    )
    gateway_attached: int = setting(
        50, unit="sessions", reason="one socket shows a list of chats, not an archive", ge=1
    )
    gateway_user_sockets: int = setting(
        20, unit="sockets", reason="of one user, with keys: some devices with some windows each", ge=1
    )
    gateway_auth_s: float = setting(
        5.0, unit="s", reason="a socket that brought no key in its handshake sends it so soon, or is closed", ge=0.1
    )
    gateway_heartbeat_s: float = setting(
        15.0, unit="s", reason="a comment on silent SSE streams: proxies cut after 30 to 60 s", ge=0.1
    )
    gateway_quiet_s: float = setting(
        15.0, unit="s", reason="so long without a frame in an unfinished turn, and history is asked again", ge=0.1
    )
    gateway_outcome_s: float = setting(
        2.0, unit="s", reason="a POST waits so long to say 201; after it 202 and a Location to ask", ge=0
    )
    gateway_answer_s: float = setting(
        1800.0, unit="s", reason="?wait=answer holds so long, the longest turn; after it 202", ge=0
    )

    @field_validator("gateway_host")
    @classmethod
    def _loopback_unless_said(cls, host: str, others: ValidationInfo) -> str:
        if host == "localhost":
            return "127.0.0.1"
        try:
            loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
        except ValueError:
            loopback = False
        allowed = others.data.get("auth") == "keys" or others.data.get("open_beyond_loopback")
        if not loopback and not allowed:
            raise ValueError("only a loopback address, unless CHATLOG_AUTH=keys or CHATLOG_OPEN_BEYOND_LOOPBACK=true")
        return host.strip("[]")
