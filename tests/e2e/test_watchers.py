"""Two gateways, many watchers, one session: the same bytes in the same order, and the same text for who comes late."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from tests.chatting import Chatter, chatter, http, new_session, send
from tests.folding import TERMINALS, SessionView
from tests.installations import Installation

TURNS = 200
LATE_COMERS = 50
SEED = 20261121


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_two_gateways_show_the_same_bytes_in_the_same_order(running: Installation) -> None:
    """Done 200 times: events in version order, tokens in index order, started < tokens < the end, on both."""
    async with chatter(running.ws(0)) as one, chatter(running.ws(1)) as two, http(running.http(0)) as client:
        session_id = await new_session(client, name="watched")
        views = [await each.attach(session_id, session_id) for each in (one, two)]
        for turn in range(TURNS):
            answer = await send(client, session_id, f"question {turn}")
            assert answer.status_code == 201, answer.text
            turn_id = answer.json()["turn_id"]
            for each, view in zip((one, two), views, strict=True):
                await each.until(lambda v=view, t=turn_id: v.ended(t), f"turn {turn} ended")  # type: ignore[misc]
            left, right = views
            assert left.token_frames.keys() == right.token_frames.keys(), (
                left.answers[turn_id],
                right.answers[turn_id],
            )
            assert turn_id in left.token_frames, left.answers[turn_id]
            assert left.token_frames[turn_id] == right.token_frames[turn_id]
        for view in views:
            assert not view.broken
            assert_causal_order(view)
        assert views[0].event_frames == views[1].event_frames
        assert len(views[0].answers) == TURNS + 1  # and the session's own event


def assert_causal_order(view: SessionView) -> None:
    """answer_started before the first token, the end after the last."""
    inside = False
    for what in view.order:
        if what == "answer_started":
            inside = True
        elif what in TERMINALS:
            inside = False
        elif what == "token":
            assert inside, "a token outside of its attempt"


async def test_who_attaches_in_mid_answer_ends_with_the_same_text(running: Installation) -> None:
    """At 50 random points of answers, on either gateway."""
    await running.standin.control.speed(token_gap_ms=4, answer_tokens=40)
    points = random.Random(SEED)
    async with chatter(running.ws(0)) as watcher, http(running.http(0)) as client:
        session_id = await new_session(client)
        whole = await watcher.attach(session_id, session_id)
        for n in range(LATE_COMERS):
            turn_id = (await send(client, session_id, f"question {n}")).json()["turn_id"]
            point = points.randrange(40)
            await watcher.until(lambda t=turn_id, p=point: reached(whole, t, p), f"token {point}")  # type: ignore[misc]
            async with chatter(running.ws(n % 2)) as late:
                view = await late.attach(session_id, session_id)
                for each, seen in ((late, view), (watcher, whole)):
                    await each.until(lambda s=seen, t=turn_id: s.ended(t), "the end")  # type: ignore[misc]
                assert not view.broken, f"seed {SEED}, point {point}: {view.broken}"
                assert view.answers[turn_id].text == whole.answers[turn_id].text
                assert view.event_frames == whole.event_frames
        assert not whole.broken


def reached(view: SessionView, turn_id: str, index: int) -> bool:
    answer = view.answers.get(turn_id)
    return answer is not None and (answer.index >= index or answer.ended_by is not None)


async def test_a_cursor_gives_only_what_follows(running: Installation) -> None:
    """A client that comes back with epoch.version.attempt.index gets no frame twice and none too few."""
    await running.standin.control.speed(token_gap_ms=10, answer_tokens=40)
    async with http(running.http(0)) as client:
        session_id = await new_session(client)
        view = SessionView(session_id)
        turn_id = (await send(client, session_id, "a long one")).json()["turn_id"]
        epoch = ""
        for gateway in (0, 1, 0, 1):
            async with chatter(running.ws(gateway)) as again:
                again.views[session_id] = view
                view.attached = False
                answer = view.answers.get(turn_id)
                inside = f".{answer.attempt}.{answer.index}" if answer and answer.attempt else ""
                await again.attach(session_id, session_id, f"{epoch}.{view.version}{inside}" if epoch else None)
                epoch = str(view.epoch)
                held = view.answers[turn_id].index if turn_id in view.answers else 0
                await again.until(lambda h=held: reached(view, turn_id, h + 8), "some more tokens")  # type: ignore[misc]
        async with chatter(running.ws(0)) as last:
            whole = await last.attach(session_id, session_id)
            await last.until(lambda: whole.ended(turn_id), "the end")
        async with chatter(running.ws(1)) as again:
            again.views[session_id] = view
            view.attached = False
            await again.attach(session_id, session_id, f"{epoch}.{view.version}")
            await again.until(lambda: view.ended(turn_id), "the end")
        assert not view.broken
        assert view.event_frames == whole.event_frames
        assert view.answers[turn_id].text == whole.answers[turn_id].text


async def test_an_unknown_epoch_is_told_to_begin_again(running: Installation) -> None:
    async with chatter(running.ws(0)) as client, http(running.http(0)) as web:
        session_id = await new_session(web)
        await client.tell(type="attach", session=session_id, after="0123456789abcdef.1")
        await client.until(lambda: client.replies("resync"), "resync")
        assert client.replies("resync")[0] == {"type": "resync", "session_id": session_id, "reason": "epoch"}


async def test_many_sessions_on_one_socket_stay_apart(running: Installation) -> None:
    async with AsyncExitStack() as stack_, http(running.http(1)) as web:
        socket: Chatter = await stack_.enter_async_context(chatter(running.ws(0)))
        ids = [await new_session(web) for _ in range(10)]
        views = [await socket.attach(each, each) for each in ids]
        turns = [(await send(web, each, f"to {each}")).json()["turn_id"] for each in ids]
        for view, turn_id in zip(views, turns, strict=True):
            await socket.until(lambda v=view, t=turn_id: v.ended(t), "the end")  # type: ignore[misc]
            assert not view.broken
            assert set(view.answers) == {"", turn_id}
    await asyncio.sleep(0)
