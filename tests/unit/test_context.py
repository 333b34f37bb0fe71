"""Which messages the model is shown (step 7): the end of the path, within the window, and the receipt of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contracts.events import LeftOut, Options
from services.history.context import (
    FRONT_STEP,
    TOKENS_PER_MESSAGE,
    ContextLimits,
    Plan,
    choose,
    context_data,
    estimate,
    render,
)
from services.history.session import Message, Session, Turn, wide_chars

LIMITS = ContextLimits(messages=200, reserve=0.25)


def conversation(texts: list[str], system: str | None = None) -> tuple[Session, Turn]:
    """texts: users' and answers' in turn; the last one is the message of the turn."""
    session = Session("u", "s", version=1, system=system)
    parent = None
    for number, text in enumerate(texts):
        role = "assistant" if number % 2 else "user"
        message_id = f"m{number}"
        session.messages[message_id] = Message(
            message_id, parent, "user" if role == "user" else "assistant", len(text), wide_chars(text), number + 1, True
        )
        parent = message_id
    assert parent is not None
    turn = Turn("t", "e", parent, "a", len(texts), None, Options())
    return session, turn


def count(left_out: LeftOut) -> int:
    return sum(left_out.model_dump(exclude_none=True).values())


def ids(plan: Plan) -> list[str]:
    return [message.message_id for message in plan.messages]


def test_all_of_a_short_conversation_is_shown() -> None:
    session, turn = conversation(["one", "two", "three"], system="Be brief.")
    plan = choose(session, turn, 4096, LIMITS)
    assert (ids(plan), plan.left_out, plan.budget.reserve) == (["m0", "m1", "m2"], LeftOut(), 1024)
    assert render(plan, {"m0": "one", "m1": "two", "m2": "three"}) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    assert plan.budget.estimated == sum(estimate(len(text), 0) for text in ("Be brief.", "one", "two", "three"))


def test_the_oldest_messages_are_left_out_in_steps_and_from_a_users_message_on() -> None:
    """A front that moved at every turn would void the server's prefix cache at every turn."""
    fronts = set()
    for length in range(61, 101, 2):
        session, turn = conversation(["x" * 300] * length)
        plan = choose(session, turn, 6000, LIMITS)
        assert plan.messages[0].role == "user"
        front = count(plan.left_out)
        assert front + len(plan.messages) == length
        fronts.add(front)
    assert all(front % FRONT_STEP == 0 for front in fronts)
    assert len(fronts) <= 40 / FRONT_STEP + 2


def test_a_few_long_messages_are_not_given_up_for_a_step() -> None:
    session, turn = conversation(["x" * 2400] * 5)
    plan = choose(session, turn, 4096, LIMITS)
    assert ids(plan) == ["m2", "m3", "m4"]


def test_no_more_messages_than_the_limit_and_the_turns_own_always() -> None:
    session, turn = conversation(["x"] * 51)
    assert len(choose(session, turn, 100_000, ContextLimits(10, 0.25)).messages) <= 10
    session, turn = conversation(["x", "y", "z" * 100_000])
    assert ids(choose(session, turn, 512, LIMITS)) == ["m2"]


def test_the_receipt_says_why_messages_were_left_out() -> None:
    session, turn = conversation(["x" * 300] * 61)
    assert choose(session, turn, 6000, LIMITS).left_out == LeftOut(budget=19, front=5)
    assert choose(session, turn, 100_000, ContextLimits(40, 0.25)).left_out == LeftOut(limit=21, front=3)
    assert choose(session, turn, 100_000, ContextLimits(61, 0.25)).left_out == LeftOut()
    for number, failed in ((1, True), (3, False), (5, False)):
        session.messages[f"m{number}"].shown = False
        session.messages[f"m{number}"].failed = failed
    assert choose(session, turn, 100_000, LIMITS).left_out == LeftOut(failed=1, empty=2)


def test_the_reserve_is_what_was_asked_for_but_never_more_than_its_share() -> None:
    session, turn = conversation(["x"])
    for asked, reserve in ((10, 10), (100_000, 1024), (None, 1024)):
        turn.options = Options(max_tokens=asked)
        assert choose(session, turn, 4096, LIMITS).budget.reserve == reserve


def test_wide_characters_cost_a_token_each_in_the_system_prompt_too() -> None:
    assert (wide_chars("abc"), wide_chars("aé漢🙂")) == (0, 3)
    assert estimate(9, 0) == TOKENS_PER_MESSAGE + 3
    assert estimate(9, 9) == TOKENS_PER_MESSAGE + 9
    session, turn = conversation(["x" * 300] * 3, system="漢" * 2900)
    assert ids(choose(session, turn, 4096, LIMITS)) == ["m2"]


def test_the_system_prompt_is_in_the_receipt_only_where_it_changes() -> None:
    session, turn = conversation(["x"], system="Be brief.")
    plan = choose(session, turn, 4096, LIMITS)
    turn.turn_id = "0199f3a0-0000-5000-8000-000000000001"
    turn.message_id = session.messages["m0"].message_id = "0199f3a0-0000-5000-8000-000000000002"
    assert context_data(session, turn, plan, "m", None, [])["system"] == "Be brief."
    session.shown_system = "Be brief."
    assert "system" not in context_data(session, turn, plan, "m", None, [])


@given(
    texts=st.lists(st.integers(1, 3000), min_size=1, max_size=60),
    window=st.integers(256, 16_384),
    limit=st.integers(1, 80),
)
def test_what_is_shown_fits_unless_it_is_the_turns_own_message_alone(texts: list[int], window: int, limit: int) -> None:
    session, turn = conversation(["x" * size for size in texts])
    plan = choose(session, turn, window, ContextLimits(limit, 0.25))
    assert plan.messages[-1].message_id == turn.message_id
    assert len(plan.messages) <= limit
    assert count(plan.left_out) == len(texts) - len(plan.messages)
    if len(plan.messages) > 1:
        assert plan.budget.estimated + plan.budget.reserve <= plan.budget.tokens
