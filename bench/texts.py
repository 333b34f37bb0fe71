"""Beside the road: texts as long as people's and models' are, made of words that are as frequent as a language's.

Owns the lengths and the words of the generated log. The same seed gives the same texts. Must never be read for sense.
"""

from __future__ import annotations

import itertools
from random import Random

# A word index grows as a language's does only where most words are rare: frequencies fall as 1 / rank (Zipf).
VOCABULARY = 20_000
# Of messages and answers in people's chats with models (LMSYS-Chat-1M, means of 69.5 and 214.5 tokens), rounded down:
# many are a line, few are pages. Median characters and the logarithm's deviation of each.
MESSAGE_CHARS = (100.0, 1.0)
ANSWER_CHARS = (400.0, 0.9)
LONGEST_CHARS = 20_000
# A word and what stands behind it.
CHARS_PER_WORD = 6.4
_BEGINNINGS = ("b", "br", "d", "f", "g", "k", "kl", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "w", "z", "")
_MIDDLES = ("a", "e", "i", "o", "u", "ai", "ea", "ou", "ä", "é")
_ENDS = ("", "n", "r", "s", "l", "t", "nd", "ck")
# What follows a word; each has its escape in JSON or none.
_BEHIND = (" ",) * 80 + (", ",) * 8 + (". ",) * 8 + ("\n", ".\n\n", ' "', "? ")
_SELDOM = ("你好", "🙂", "naïve", "```python\nprint(1)\n```", "\\alpha", "https://example.org/a?b=c", "ΔT", "C++")


class Texts:
    """Draws from one generator of numbers, so that a seed decides everything."""

    def __init__(self, random: Random) -> None:
        self._random = random
        syllables = ["".join(parts) for parts in itertools.product(_BEGINNINGS, _MIDDLES, _ENDS)]
        words = [
            "".join(random.choices(syllables, k=1 + (rank > 100) + (rank > 5000))) for rank in range(1, VOCABULARY)
        ]
        self._words = [word + random.choice(_BEHIND) for word in [*words, *_SELDOM]]
        self._weights = list(itertools.accumulate(1 / rank for rank in range(1, len(self._words) + 1)))

    def message(self) -> str:
        return self._text(*MESSAGE_CHARS)

    def answer(self) -> str:
        return self._text(*ANSWER_CHARS)

    def title(self) -> str:
        return self._of_words(4)

    def _text(self, median_chars: float, deviation: float) -> str:
        chars = min(median_chars * self._random.lognormvariate(0, deviation), LONGEST_CHARS)
        return self._of_words(1 + int(chars / CHARS_PER_WORD))

    def _of_words(self, count: int) -> str:
        return "".join(self._random.choices(self._words, cum_weights=self._weights, k=count)).strip() or "yes"
