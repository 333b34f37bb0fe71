"""What the stand-in keeps of a conversation that is too long, and what it need not read again."""

from __future__ import annotations

import pytest

from services.standin.prompt import Message, PromptCache, PromptTooLong, Window, fit, prompt_tokens, render

SYSTEM = Message("system", "be brief")
CUT = Window(64, truncate=True, shift=True)


def turns(how_many: int) -> list[Message]:
    return [Message("user" if n % 2 == 0 else "assistant", f"word {n}") for n in range(how_many)]


def test_an_empty_message_has_the_recorded_nine_tokens() -> None:
    assert prompt_tokens([Message("user", "")]) == 9
    assert prompt_tokens([Message("user", "Why is the sky blue? One sentence.")]) == 18


def test_the_front_goes_but_system_messages_and_the_last_stay() -> None:
    conversation = [SYSTEM, *turns(40), Message("user", "and now?")]
    prompt = fit(conversation, CUT)
    assert prompt.tokens < 64
    assert prompt.messages[0] == SYSTEM
    assert prompt.messages[1:] == tuple(conversation[-len(prompt.messages) + 1 :]), "no hole in the middle"
    assert prompt_tokens([conversation[-len(prompt.messages)], *prompt.messages]) >= 64, "no more than needed"


def test_one_message_that_is_too_long_is_cut_to_half_the_window() -> None:
    assert fit([Message("user", "word " * 600)], Window(512, truncate=True, shift=True)).tokens == 258


@pytest.mark.parametrize(
    ("window", "cut_refused"),
    [(Window(64, truncate=False, shift=True), False), (Window(64, truncate=True, shift=False), True)],
)
def test_what_may_not_be_cut_is_refused(window: Window, cut_refused: bool) -> None:
    with pytest.raises(PromptTooLong) as refused:
        fit([Message("user", "word " * 500)], window)
    assert (refused.value.cut_refused, refused.value.window) == (cut_refused, 64)


def test_a_prompt_that_fills_the_window_to_the_last_token_does_not_fit() -> None:
    message = Message("user", "word")
    assert fit([message], Window(11, truncate=False, shift=True)).tokens == 10
    with pytest.raises(PromptTooLong):
        fit([message], Window(10, truncate=False, shift=True))


def test_the_cache_knows_the_common_front_and_always_leaves_a_token() -> None:
    window = Window(4096, truncate=True, shift=True)
    first, cache = fit([SYSTEM, Message("user", "one")], window), PromptCache()
    assert cache.cached_tokens(first) == 0
    cache.remember((*first.messages, Message("assistant", "answer")))
    assert cache.cached_tokens(first) == first.tokens - 1
    longer = fit([*first.messages, Message("assistant", "answer"), Message("user", "two")], window)
    assert cache.cached_tokens(longer) == sum(message.tokens for message in longer.messages[:3])
    other = fit([SYSTEM, Message("user", "two")], window)
    assert cache.cached_tokens(other) == SYSTEM.tokens


def test_the_template_is_the_recorded_one() -> None:
    assert render([Message("user", "hi")]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
