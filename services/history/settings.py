"""The settings of history, each with its unit, default and reason."""

from __future__ import annotations

from services.runtime.settings import SharedSettings, setting

TURNS_PER_USER_WITH_KEYS = 2
SECONDS_A_DAY = 86_400.0


class HistorySettings(SharedSettings):
    """What an operator may change of history."""

    model: str = setting("", unit="", reason="of turns for which nobody named one; empty: the first that a worker has")
    num_ctx: int | None = setting(
        None, unit="tokens", reason="the window that every native request asks for; unset: the server's choice", ge=4
    )
    window_unknown: int = setting(
        4096, unit="tokens", reason="taken for a model until its server tells its window: what servers start with", ge=1
    )
    context_messages: int = setting(
        200, unit="messages", reason="more of a conversation's end than any default window holds", ge=1
    )
    context_reserve: float = setting(
        0.25, unit="share of the window", reason="kept free for the answer where max_tokens does not say", ge=0, le=0.9
    )
    attempts: int = setting(3, unit="attempts", reason="a turn that loses three workers is likely their reason", ge=1)
    turns_waiting: int = setting(
        20, unit="turns per session", reason="more than anyone types while an answer runs", ge=1
    )
    turns_running: int | None = setting(
        None,
        unit="turns per user",
        reason="unset: 2 with keys, so that nobody takes every slot; without, one user may. 0: no bound",
        ge=0,
    )
    turns_ahead: int = setting(
        4,
        unit="turns per model",
        reason="queued beyond its slots, or half as many as them: no worker waits for history",
        ge=1,
    )
    batch_events: int = setting(256, unit="events", reason="one fsync for all of them; larger gains nothing", ge=1)
    cached_sessions: int = setting(1000, unit="sessions", reason="folded states kept; about 10 KB each", ge=1)
    no_worker_s: float = setting(
        120.0, unit="s", reason="time to start a worker or load a model before a turn fails", ge=0
    )
    requeue_s: float = setting(
        60.0, unit="s", reason="silence after which a turn's context is queued again; harmless if it is there", ge=0
    )
    cancel_s: float = setting(
        5.0,
        unit="s",
        reason="a worker ends a turn in milliseconds when told; after it history does, without text",
        ge=0,
    )
    intake_keep_h: float = setting(
        24.0, unit="h", reason="what the log has consumed stays so long, to restore a backup from", ge=0
    )
    outcomes_keep_days: float = setting(7.0, unit="days", reason="who missed a refusal can ask so long", ge=0)
    deleted_keep_days: float = setting(
        30.0,
        unit="days",
        reason="a deleted session can be restored so long: a long holiday fits",
        ge=0,
    )
    accept_gap: bool = setting(
        False, unit="", reason="an operator's word that the log may go on without events that are gone"
    )

    @property
    def active_per_user(self) -> int | None:
        """Turns of one user that may be active at once; None: no bound."""
        if self.turns_running is None:
            return TURNS_PER_USER_WITH_KEYS if self.auth == "keys" else None
        return self.turns_running or None

    @property
    def keep_deleted_s(self) -> float:
        return self.deleted_keep_days * SECONDS_A_DAY

    def room_for(self, slots: int) -> int:
        """Turns of a model that may be dispatched at once: its slots, and so many that none idles meanwhile."""
        return slots + max(self.turns_ahead, slots // 2)
