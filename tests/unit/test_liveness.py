"""What history has heard of workers (D7, A18): forgotten after 6 s, and no run called dead when history was away."""

from __future__ import annotations

from contracts.events import MAX_DIGEST_CHARS
from contracts.turns import PRESENCE_FORGOTTEN_S, ModelPresence, Presence, RunPresence
from services.history.liveness import STALL_S, Liveness
from tests.conversing import new_id

TURN, RUN = new_id(), new_id()
LATER = 100.0


def presence(
    worker: str = "w1",
    model: str | None = "m",
    *,
    server: str = "ok",
    window: int | None = None,
    digest: str | None = None,
    stopping: bool = False,
    trouble: str | None = None,
) -> Presence:
    return Presence(
        worker_id=worker,
        models=[ModelPresence(name=model, window=window, digest=digest, trouble=trouble)] if model else [],
        server=server,
        server_kind="ollama",
        slots=1,
        free=0,
        runs=[RunPresence(turn_id=TURN, run=RUN)],
        stopping=stopping,
    )


def awake(*heard: Presence) -> Liveness:
    """After the grace of its start, looked at every second, with beats at LATER."""
    liveness = Liveness(0)
    for second in range(1, int(LATER) + 1):
        liveness.at(second)
    for each in heard:
        liveness.heard(each, LATER)
    return liveness


def looked_at(liveness: Liveness, until_s: float) -> bool:
    """Whether RUN is alive at that time, after a look every second."""
    second = LATER
    while second < until_s:
        second = min(second + 1, until_s)
        alive = liveness.at(second).alive(TURN, RUN)
    return alive


def test_a_run_is_alive_while_its_workers_presence_lists_it_and_is_young() -> None:
    liveness = awake(presence())
    assert liveness.at(LATER).alive(TURN, RUN)
    assert not liveness.at(LATER).alive(TURN, new_id())
    assert looked_at(liveness, LATER + PRESENCE_FORGOTTEN_S)
    assert not looked_at(liveness, LATER + PRESENCE_FORGOTTEN_S + 0.1)


def test_after_start_and_reconnect_every_run_counts_as_alive() -> None:
    liveness = Liveness(0)
    assert liveness.at(PRESENCE_FORGOTTEN_S - 0.1).alive(TURN, RUN)
    liveness = awake()
    assert not liveness.at(LATER).alive(TURN, RUN)
    liveness.back(LATER)
    assert looked_at(liveness, LATER + PRESENCE_FORGOTTEN_S - 0.1)
    assert not looked_at(liveness, LATER + PRESENCE_FORGOTTEN_S)


def test_after_a_stall_every_run_counts_as_alive() -> None:
    """The beats of that time are still in the socket when the first claim is decided."""
    liveness = awake(presence())
    assert liveness.at(LATER + 30).alive(TURN, new_id())
    liveness = awake()
    assert not liveness.at(LATER + STALL_S).alive(TURN, RUN)


def test_whether_a_model_is_served() -> None:
    for heard, found in (
        ([], "absent"),
        ([presence()], "served"),
        ([presence(model="other")], "absent"),
        ([presence(stopping=True)], "absent"),
        ([presence(server="model_unreachable")], "sick"),
        ([presence(server="model_unreachable", model=None)], "sick"),
        ([presence(server="model_unreachable"), presence("w2")], "served"),
        ([presence(trouble="model_stalled")], "sick"),
        ([presence(trouble="model_stalled"), presence("w2")], "served"),
        ([presence(model="other", trouble="model_stalled")], "absent"),
    ):
        assert awake(*heard).at(LATER).service_of("m") == found
    assert awake(presence(model="other")).at(LATER).service_of(None) == "served"


def test_the_model_that_a_turn_gets_if_nobody_named_one() -> None:
    assert awake(presence("w1", "b"), presence("w2", "a")).at(LATER).first_model() == "b", "the first heard"
    assert awake(presence(server="model_unreachable")).at(LATER).first_model() is None
    assert awake(presence(trouble="model_stalled")).at(LATER).first_model() == "m", "not another one for a while"
    assert awake(presence(stopping=True), presence("w2", None)).at(LATER).first_model() is None


def test_the_window_is_the_smallest_that_a_worker_tells() -> None:
    workers = awake(presence("w1", window=8192), presence("w2", window=2048), presence("w3")).at(LATER)
    assert (workers.window_of("m"), workers.window_of("other")) == (2048, None)


def test_the_digest_is_the_one_that_all_who_tell_one_tell() -> None:
    for told, found in (
        ([None], None),
        (["a", None, "a"], "a"),
        (["a", "b"], None),
        ([""], None),
        (["a" * (MAX_DIGEST_CHARS + 1)], None),
    ):
        heard = [presence(f"w{number}", digest=digest) for number, digest in enumerate(told)]
        assert awake(*heard).at(LATER).digest_of("m") == found


def test_a_name_without_a_tag_is_the_latest_where_only_that_is_offered() -> None:
    """Ollama lists `m` as `m:latest`, and people say `m`."""
    liveness = Liveness(now_s=0)
    offered = [ModelPresence(name="m:latest"), ModelPresence(name="n"), ModelPresence(name="n:latest")]
    liveness.heard(
        Presence(worker_id="w", models=offered, server="ok", server_kind="ollama", slots=1, free=1, runs=[]), now_s=0
    )
    workers = liveness.at(0)
    assert [workers.full_name(name) for name in ("m", "n", "m:latest", "o")] == ["m:latest", "n", "m:latest", "o"]
