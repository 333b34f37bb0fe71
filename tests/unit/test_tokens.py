"""Step 12, the numbering of tokens: whatever comes together is one frame, and the frames are the answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contracts.frames import encode
from services.inference.tokens import Answer

SESSION = "00000000-0000-7000-8000-000000000001"
TURN = "00000000-0000-7000-8000-000000000002"


def answer(frame_chars: int = 100) -> Answer:
    return Answer(SESSION, TURN, frame_chars)


def test_what_waits_together_is_one_frame() -> None:
    told = answer()
    told.add("", "Hel")
    told.add("", "lo")
    [frame] = told.give_out(attempt=1)
    assert (frame.index, frame.attempt, frame.text) == (1, 1, "Hello")
    told.add("", "!")
    [frame] = told.give_out(attempt=1)
    assert (frame.index, frame.text) == (2, "!")
    assert told.give_out(attempt=1) == []


def test_thinking_stands_before_text_in_one_frame_and_is_left_out_where_there_is_none() -> None:
    told = answer()
    told.add("hm ", "")
    told.add("yes", "Y")
    told.add("", "es")
    [frame] = told.give_out(attempt=2)
    assert (frame.thinking, frame.text) == ("hm yes", "Yes")
    told.add("", "!")
    assert b"thinking" not in encode(told.give_out(attempt=2)[0])


def test_thinking_after_text_gets_a_frame_of_its_own() -> None:
    told = answer()
    told.add("a", "b")
    told.add("c", "d")
    frames = told.give_out(attempt=1)
    assert [(frame.index, frame.thinking, frame.text) for frame in frames] == [(1, "a", "b"), (2, "c", "d")]


def test_a_long_piece_is_split() -> None:
    told = answer(frame_chars=4)
    told.add("", "0123456789")
    assert [frame.text for frame in told.give_out(attempt=1)] == ["0123", "4567", "89"]
    assert told.index == 3


def test_a_lone_surrogate_becomes_a_replacement_character() -> None:
    told = answer()
    told.add("\ud800", "a\udc00b")
    [frame] = told.give_out(attempt=1)
    assert (frame.thinking, frame.text) == ("�", "a�b")
    assert encode(told.so_far(attempt=1)).decode()


def test_the_text_so_far_holds_what_was_given_out_and_nothing_else() -> None:
    told = answer()
    assert told.chars == 0
    told.add("", "given")
    told.give_out(attempt=1)
    told.add("", "waiting")
    so_far = told.so_far(attempt=1)
    assert (so_far.index, so_far.text, so_far.thinking) == (1, "given", "")
    assert told.begun
    assert told.chars == len("givenwaiting")


@given(
    st.lists(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), max_size=5), max_size=6),
    st.integers(min_value=1, max_value=9),
)
def test_the_frames_are_the_answer_however_it_came(rounds: list[list[tuple[str, str]]], frame_chars: int) -> None:
    told = answer(frame_chars)
    frames = []
    for pieces in rounds:
        for thinking, text in pieces:
            told.add(thinking, text)
        frames += told.give_out(attempt=1)
        assert told.so_far(attempt=1).text == "".join(frame.text for frame in frames)
    assert [frame.index for frame in frames] == list(range(1, len(frames) + 1))
    assert all(0 < len(frame.thinking or "") + len(frame.text) <= frame_chars for frame in frames)
    said = [piece for pieces in rounds for piece in pieces]
    assert "".join(frame.thinking or "" for frame in frames) == "".join(thinking for thinking, _ in said)
    assert "".join(frame.text for frame in frames) == "".join(text for _, text in said)
