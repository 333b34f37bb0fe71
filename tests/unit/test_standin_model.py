"""The stand-in's tokens, text, stop strings and limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.standin.model import (
    CONFESSION,
    Catalogue,
    ModelSpec,
    Piece,
    RepeatGuard,
    StopStrings,
    answer,
    full_name,
    token_count,
    tokens,
)
from services.standin.telling import Telling


def told(pieces: list[str], *, limit: int = 100, stops: tuple[str, ...] = (), guarded: bool = False) -> Telling:
    return Telling((Piece(text) for text in pieces), limit=limit, stops=stops, guarded=guarded)


def text_of(telling: Telling) -> str:
    return "".join(piece.text for piece in telling if piece)


@given(st.text())
def test_tokens_are_the_whole_text_and_nothing_else(text: str) -> None:
    assert "".join(tokens(text)) == text


def test_a_token_is_a_short_word_a_digit_a_sign_or_a_character() -> None:
    assert tokens("What is 2+2?") == ["What", " is", " 2", "+", "2", "?"]
    assert (tokens("a😀é"), token_count("a😀é")) == (["a", "😀", "é"], 5)


def test_an_answer_says_what_it_is_and_depends_on_prompt_and_seed_only() -> None:
    texts = {
        (prompt, seed): "".join(piece.text for piece in answer(prompt, seed, 40))
        for prompt in ("one", "two")
        for seed in (None, 1, 2)
    }
    assert all(text.startswith(CONFESSION) for text in texts.values())
    assert len(set(texts.values())) == 6
    assert texts["one", 1] == "".join(piece.text for piece in answer("one", 1, 40))


@given(st.integers(1, 60))
def test_an_answer_has_the_length_that_was_asked_and_never_trips_the_guard(length: int) -> None:
    telling = Telling(answer("prompt", 1, length), limit=1000, stops=(), guarded=True)
    assert len([piece for piece in telling if piece]) == length
    assert telling.reason == "stop"


def test_the_limit_ends_with_length_and_a_longer_one_with_stop_and_the_token_of_the_end() -> None:
    short, long = told(["a", "b", "c"], limit=3), told(["a", "b", "c"], limit=4)
    assert (text_of(short), short.reason, short.tokens) == ("abc", "length", 3)
    assert (text_of(long), long.reason, long.tokens) == ("abc", "stop", 4)


@given(st.lists(st.text(alphabet="abx", max_size=3), max_size=8), st.text(alphabet="ab", min_size=1, max_size=3))
def test_a_stop_string_ends_the_text_wherever_the_pieces_break(pieces: list[str], stop: str) -> None:
    telling = told(pieces, stops=(stop,))
    assert text_of(telling) == "".join(pieces).split(stop)[0]


def test_the_first_of_several_stop_strings_counts() -> None:
    stops = StopStrings(["", "END", "x"])
    assert stops.feed("axEND") == "a"
    assert stops.hit


def test_the_guard_trips_at_the_31st_repetition() -> None:
    telling = told(["x"] * 50, guarded=True)
    assert (text_of(telling), telling.reason) == ("x" * 31, None)
    assert text_of(told(["x"] * 50)) == "x" * 50
    guard = RepeatGuard()
    assert not any(guard.trips(text) for text in ["a", "b"] * 40)


@pytest.mark.parametrize(
    ("name", "full"), [("M", "m:latest"), ("m:TAG", "m:tag"), ("host:80/m", "host:80/m:latest"), ("a/b:c", "a/b:c")]
)
def test_names_are_compared_in_lower_case_with_their_tag(name: str, full: str) -> None:
    assert full_name(name) == full


def test_a_window_is_what_was_asked_else_the_models_else_the_servers() -> None:
    plain, own = ModelSpec(name="plain"), ModelSpec(name="own", window=512, train_window=2048)
    catalogue = Catalogue([plain, own], 4096)
    assert [catalogue.window(plain), catalogue.window(own)] == [4096, 512]
    assert [catalogue.window(own, 1024), catalogue.window(own, 9999), catalogue.window(own, 1)] == [1024, 2048, 4]
    assert catalogue.find("OWN:latest") is own
    assert catalogue.find("own:8b") is None
