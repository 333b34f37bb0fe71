"""Step 11, inference/health: which models the server has, and which of them may be given turns.

Owns the regular question for the list, and the trial: a model that failed a run is given no turn until a chat of one
token is answered. The list proves nothing about that: a server whose runner hangs lists its models in a millisecond
(recorded). Must never try a model with somebody's turn, nor hang up on a load that is only slow: it would begin anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass

import structlog

from contracts.errors import FailureCode
from services.inference.models.port import Model, ModelFailure, ModelRequest, ModelServer, Patience

log = structlog.get_logger(__name__)

OK = "ok"
# A model that was pulled or unloaded is known within this time; the question costs the server a millisecond.
ASK_EVERY_S = 5.0
# A server that does not tell its models is asked more often: until it does, nobody is served.
ASK_AGAIN_S = 1.0
# A model that is missing from the list so long is gone. Lists flap, while a server restarts or a tag is written anew.
GONE_AFTER_S = 15.0
# A trial is never at once: a server needs a moment to come back.
TRY_AGAIN_S = 1.0
# Each failed trial doubles the wait, up to this: a model that cannot be loaded would put out others by each try.
TRY_AT_MOST_S = 60.0
# Each model costs a consumer and a waiting pull; the broker takes 1 000 consumers for a stream.
MAX_MODELS = 200
MAX_NAME_CHARS = 200
# The server read the request and said no: it answers. Whether it says no to a turn, too, is that turn's business.
_REFUSALS: frozenset[FailureCode] = frozenset({"model_refused", "model_not_found", "context_too_long"})


@dataclass(frozen=True, slots=True)
class TrialTimes:
    """How long a trial waits for its token: twice as long as a turn does, each time twice as long as before, so that a
    load too slow for turns comes to its end at last; but at_most_s."""

    turn_s: float
    at_most_s: float

    def of(self, tries: int) -> float:
        """So many trials have failed since the run that did."""
        return float(min(self.turn_s * 2 ** (tries + 1), self.at_most_s))


@dataclass(slots=True, eq=False)
class _Trouble:
    """A model's latest failure, and when its next trial is due on the loop's clock."""

    code: str
    due_s: float
    tries: int = 0


class Health:
    """One model server's. tells_loads: its list says what is in memory. changed: called after each change."""

    def __init__(
        self, server: ModelServer, times: TrialTimes, changed: Callable[[], None], *, tells_loads: bool
    ) -> None:
        self._server = server
        self._times = times
        self._changed = changed
        self._tells_loads = tells_loads
        self._listing = "model_unreachable"  # until it has answered
        self._seen_s: dict[Model, float] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._doubt = asyncio.Event()
        self._trial: asyncio.Timeout | None = None
        self.models: tuple[Model, ...] = ()

    @property
    def state(self) -> str:
        """ok, or why no turn at all can be given to the server."""
        troubles = [self.trouble_of(model.name) for model in self.models]
        if self._listing == OK and troubles and all(troubles):
            return str(troubles[0])
        return self._listing

    def trouble_of(self, model: str) -> str | None:
        """Why this model is given no turn now."""
        trouble = self._troubles.get(model)
        return trouble.code if trouble else None

    def serves(self, model: str) -> bool:
        """Whether a turn of this model may be taken."""
        return self._listing == OK and model not in self._troubles and any(known.name == model for known in self.models)

    async def is_loaded(self, model: str) -> bool:
        """Whether the model is in memory: asked now. Where the server does not tell, it counts as loaded."""
        if not self._tells_loads:
            return True
        await self._ask()
        return any(known.name == model and known.window is not None for known in self.models)

    def failed(self, model: str, code: str) -> None:
        """A run of this model was lost: no further one until a trial that begins from now on is answered."""
        self._troubles[model] = _Trouble(code, asyncio.get_running_loop().time() + TRY_AGAIN_S)
        self._doubt.set()
        log.warning("model_in_trouble", model=model, code=code)
        self._changed()

    async def keep_asking(self) -> None:
        """Ask the server what it can run, until cancelled; soon after a failure."""
        while True:
            self._doubt.clear()
            await self._ask()
            with suppress(TimeoutError):
                async with asyncio.timeout(ASK_EVERY_S if self._listing == OK else ASK_AGAIN_S):
                    await self._doubt.wait()

    async def keep_trying(self) -> None:
        """Try what failed, one model after the other, until cancelled: two loads at once would put each other out."""
        while True:
            await asyncio.sleep(TRY_AGAIN_S)  # pace: it bounds the trials a second
            if self._listing == OK and self._troubles:
                model, trouble = min(self._troubles.items(), key=lambda entry: entry[1].due_s)
                if trouble.due_s <= asyncio.get_running_loop().time():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(None) as self._trial:
                            await self._try(model, trouble)
                    self._trial = None

    async def _try(self, model: str, trouble: _Trouble) -> None:
        code = await self._chat(model, self._times.of(trouble.tries))
        if self._troubles.get(model) is not trouble:
            return  # it failed another run meanwhile, and this answer is older than that
        if code is None:
            del self._troubles[model]
            log.warning("model_well_again", model=model, before=trouble.code)
        else:
            trouble.tries += 1
            trouble.code = code
            wait_s = min(TRY_AGAIN_S * 2**trouble.tries, TRY_AT_MOST_S)
            trouble.due_s = asyncio.get_running_loop().time() + wait_s
            log.warning("model_still_in_trouble", model=model, code=code, again_after_s=wait_s)
        self._changed()

    async def _chat(self, model: str, patience_s: float) -> FailureCode | None:
        """The failure of a chat of one token, if it fails."""
        request = ModelRequest(model, (("user", "Say yes."),), seed=0, max_tokens=1)
        try:
            async with aclosing(self._server.answer(request, Patience(patience_s, patience_s))) as stream:
                await anext(stream)
        except ModelFailure as failure:
            return None if failure.code in _REFUSALS else failure.code
        return None

    async def _ask(self) -> None:
        try:
            listed = await self._server.models()
        except ModelFailure as failure:
            self._become(self.models, failure.code)
            return
        now_s = asyncio.get_running_loop().time()
        if self._listing != OK:
            self._believe_again(now_s)
        self._become(self._offered(listed, now_s), OK)

    def _believe_again(self, now_s: float) -> None:
        """The server was away and is back, so the next turn is its trial: one from before may wait for ever."""
        self._troubles.clear()
        trial, self._trial = self._trial, None
        if trial is not None:
            trial.reschedule(now_s)

    def _offered(self, listed: list[Model], now_s: float) -> tuple[Model, ...]:
        """The models that can be asked for by name; of a hosted server's hundreds, the first so many."""
        named = {model.name: model for model in listed if 1 <= len(model.name) <= MAX_NAME_CHARS}
        missing = {known: seen_s for known, seen_s in self._seen_s.items() if known.name not in named}
        self._seen_s = {known: seen_s for known, seen_s in missing.items() if now_s - seen_s < GONE_AFTER_S}
        self._seen_s |= dict.fromkeys(named.values(), now_s)
        return tuple(sorted(self._seen_s, key=lambda model: model.name)[:MAX_MODELS])

    def _become(self, models: tuple[Model, ...], listing: str) -> None:
        if (models, listing) == (self.models, self._listing):
            return
        if listing != self._listing:
            log.warning("model_server", state=listing, before=self._listing, models=len(models))
        self.models, self._listing = models, listing
        names = {model.name for model in models}
        self._troubles = {model: trouble for model, trouble in self._troubles.items() if model in names}
        self._changed()
