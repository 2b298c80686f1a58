"""Requests and tokens per minute, and calls at once: per model and per endpoint, shared by all workers.

A `Lane` gives out permits. Runs take turns; within a run the first comes first. What is at the head waits for four things:

| bound | what it is | who moves it |
|---|---|---|
| window | calls at once | half of it after a 429 (once per volley); wider with each success, up to `concurrency` |
| requests, tokens | two buckets that refill continuously | a permit takes its estimate, `settle` gives back or takes more |
| pause | nothing goes before its end | Retry-After, ``requests_left`` 0, a 429 that names no time; at most `PAUSE_CAP_S` |
| tokens left | what the server said it still takes, until its reset | the newest answer; a permit takes its estimate |

A bucket holds a tenth of a minute's worth, at least one request: in no 60 s is more sent than the limit plus the bucket, or
plus the largest single estimate where that is larger (it waits for a full bucket and leaves a debt, so that it goes alone).
Nothing learnt here outlives the process.

pyrate-limiter was not taken: it can neither give back what was not used nor change its rate.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from pop.models.request import RateNews

BURST = 0.1  # of a minute's worth
PAUSE_CAP_S = 120.0
BACKOFF_S, BACKOFF_CAP_S = 0.5, 30.0  # after a 429 that names no time
WIDER = 0.05  # the least that a success adds to the window: a round of calls makes it 5 % wider
SLACK_S = 0.001  # a timer is not set shorter
TOKENS_CAP = 10**12  # no server is believed more


class _Bucket:
    """What may be sent now; refills continuously, and holds at least -1 minute's worth: no debt lasts longer."""

    def __init__(self, per_minute: float | None, now: float, least: float) -> None:
        self._now, self._least = now, least
        self.per_minute: float | None = None
        self._level = self._capacity = math.inf
        self.change(per_minute, now)

    def change(self, per_minute: float | None, now: float) -> None:
        """Another limit; None is none. What is owed stays owed."""
        self._refill(now)
        self.per_minute = per_minute
        self._capacity = math.inf if per_minute is None else max(self._least, per_minute * BURST)
        self._level = math.inf if per_minute is None else min(self._level, self._capacity)

    def wait_s(self, size: float, now: float) -> float:
        """Seconds until `size` may be taken; what is larger than the bucket waits until it is full."""
        self._refill(now)
        missing = min(size, self._capacity) - self._level
        if self.per_minute is None or missing <= 1e-9 * max(size, 1.0):
            return 0.0
        return missing * 60.0 / self.per_minute

    def take(self, size: float, now: float) -> None:
        """Take `size`, or give it back when it is negative."""
        self._refill(now)
        if self.per_minute is not None:
            self._level = max(min(self._level - size, self._capacity), -self.per_minute)

    def _refill(self, now: float) -> None:
        if self.per_minute is not None:
            self._level = min(self._capacity, self._level + max(now - self._now, 0.0) * self.per_minute / 60.0)
        self._now = now


class _Minute:
    """A sum over the last 60 s, in slots of one second."""

    def __init__(self) -> None:
        self._slots = [0] * 60
        self._second = 0
        self._sum = 0

    def add(self, number: int, second: int, now: float) -> None:
        """Count what belongs to `second`; what is older than a minute is passed over."""
        self._advance(int(now))
        if self._second - 60 < second <= self._second:
            self._slots[second % 60] += number
            self._sum += number

    def sum(self, now: float) -> int:
        self._advance(int(now))
        return self._sum

    def _advance(self, second: int) -> None:
        for passed in range(max(self._second, second - 60) + 1, second + 1):
            self._sum -= self._slots[passed % 60]
            self._slots[passed % 60] = 0
        self._second = max(self._second, second)


class _Waiter:
    """Who waits, for how many tokens."""

    __slots__ = ("permit", "run_id", "tokens")

    def __init__(self, run_id: str, tokens: int, permit: asyncio.Future[Permit]) -> None:
        self.run_id, self.tokens, self.permit = run_id, tokens, permit


class Permit:
    """One call that may go. Its holder releases it, whatever becomes of the call."""

    def __init__(self, lane: Lane, tokens: int, second: int, volley: int) -> None:
        self._lane = lane
        self._tokens = tokens
        self._second = second
        self._volley = volley
        self._held = True
        self._made = False
        self._welcome = False

    def settle(self, tokens: int | None) -> None:
        """Tokens really used, when they are known: what was reserved too much is given back, too little is taken."""
        self._made = True
        if tokens is not None:
            tokens = _believed(tokens)
            self._lane._correct(tokens - self._tokens, self._second)
            self._tokens = tokens

    def heard(self, rate: RateNews | None, *, limited: bool) -> None:
        """What came back: the headers of an answer or error, and whether it was a 429."""
        self._made = True
        widens = not limited and not self._welcome
        self._welcome = self._welcome or not limited
        self._lane._heard(rate, limited=limited, widens=widens, volley=self._volley)

    def release(self) -> None:
        """The call is over. A second time changes nothing."""
        if self._held:
            self._held = False
            self._lane._released()

    def end(self) -> None:
        """The same; a call of which nothing was heard or settled was never made, and gives back what it took."""
        if self._held and not self._made:
            self._lane._take_back(self._tokens, self._second)
        self.release()


class Lane:
    """What one model, or all models of one endpoint, may be asked. All calls come from one event loop.

    Args:
        concurrency: Calls at once; None: as many as come, until a 429 says otherwise.
        requests_per_minute, tokens_per_minute: Above 0; None is no limit.
        clock: Seconds, as the event loop counts them.
    """

    def __init__(
        self,
        name: str,
        *,
        concurrency: int | None,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        now = clock()
        self.name = name
        self._clock = clock
        self._rng = rng or random.Random()
        self._concurrency = concurrency
        self._window = math.inf if concurrency is None else float(concurrency)
        self._requests = _Bucket(requests_per_minute, now, least=1.0)
        self._tokens = _Bucket(tokens_per_minute, now, least=0.0)
        self._sent, self._used = _Minute(), _Minute()
        self._turns: OrderedDict[str, OrderedDict[_Waiter, None]] = OrderedDict()  # runs in the order of their turns
        self._in_flight = self._waiting = 0
        self._volley = 0  # permits given since the last 429 that counted share a number
        self._refused = 0  # 429s in a row that counted
        self._paused_until = self._left_until = -math.inf
        self._left = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def configure(
        self, *, concurrency: int | None, requests_per_minute: float | None, tokens_per_minute: float | None
    ) -> None:
        """Other limits, from now on. Who waits keeps its place, and what a 429 narrowed stays narrow."""
        now, most = self._clock(), math.inf if concurrency is None else float(concurrency)
        self._window = most if self._window >= self._most() else min(self._window, most)
        self._concurrency = concurrency
        self._requests.change(requests_per_minute, now)
        self._tokens.change(tokens_per_minute, now)
        self._stop_timer()
        self._serve()

    async def permit(self, run_id: str, tokens: int) -> Permit:
        """Wait for this run's turn.

        Args:
            tokens: The estimate of input and output together; it is reserved.
        """
        waiter = _Waiter(run_id, _believed(tokens), asyncio.get_running_loop().create_future())
        self._turns.setdefault(run_id, OrderedDict())[waiter] = None
        self._waiting += 1
        self._serve()
        try:
            return await waiter.permit
        except asyncio.CancelledError:
            if waiter.permit.cancelled() or not waiter.permit.done():
                self._leave(waiter)
            else:  # it was given in the very moment
                waiter.permit.result().end()
            raise

    def figures(self) -> dict[str, Any]:
        """What goes on now: ``in_flight``, ``waiting``, ``window`` (None: no bound), ``requests_per_minute`` and
        ``tokens_per_minute`` over the last 60 s, ``paused_s`` from now (or 0), and the ``limits``."""
        now = self._clock()
        return {
            "in_flight": self._in_flight,
            "waiting": self._waiting,
            "window": None if math.isinf(self._window) else int(self._window),
            "requests_per_minute": self._sent.sum(now),
            "tokens_per_minute": self._used.sum(now),
            "paused_s": round(max(self._paused_until - now, 0.0), 3),
            "limits": {
                "concurrency": self._concurrency,
                "requests_per_minute": self._requests.per_minute,
                "tokens_per_minute": self._tokens.per_minute,
            },
        }

    # -- who goes ----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Give permits until nobody waits or the next one has to."""
        while self._turns:
            run_id, queue = next(iter(self._turns.items()))
            waiter = next(iter(queue))
            if waiter.permit.done():  # cancelled, and not yet told
                self._leave(waiter, serve=False)
                continue
            now = self._clock()
            wait_s = self._wait_s(waiter.tokens, now)
            if wait_s > 0:
                self._wake_in(wait_s, now)
                return
            self._leave(waiter, serve=False)
            if queue:
                self._turns.move_to_end(run_id)
            waiter.permit.set_result(self._give(waiter.tokens, now))
        self._stop_timer()

    def _wait_s(self, tokens: int, now: float) -> float:
        """Seconds until a request of this size may go; infinite while the window is full."""
        if self._in_flight >= int(min(self._window, 1e9)):
            return math.inf
        told = self._left_until - now if tokens > self._left else 0.0
        return max(self._paused_until - now, told, self._requests.wait_s(1.0, now), self._tokens.wait_s(tokens, now))

    def _give(self, tokens: int, now: float) -> Permit:
        self._in_flight += 1
        self._left -= tokens
        self._requests.take(1.0, now)
        self._tokens.take(tokens, now)
        self._sent.add(1, int(now), now)
        self._used.add(tokens, int(now), now)
        return Permit(self, tokens, int(now), self._volley)

    def _leave(self, waiter: _Waiter, *, serve: bool = True) -> None:
        queue = self._turns.get(waiter.run_id)
        if queue is None or waiter not in queue:
            return
        del queue[waiter]
        self._waiting -= 1
        if not queue:
            del self._turns[waiter.run_id]
        if serve:
            self._serve()

    def _wake_in(self, wait_s: float, now: float) -> None:
        """Set the one timer; one that rings earlier may stay."""
        if math.isinf(wait_s) or self._timer_at <= now + wait_s:
            return
        self._stop_timer()
        self._timer_at = now + wait_s
        self._timer = asyncio.get_running_loop().call_later(max(wait_s, SLACK_S), self._wake)

    def _wake(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._serve()

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer, self._timer_at = None, math.inf

    # -- what comes back ---------------------------------------------------------------------------------------

    def _take_back(self, tokens: int, second: int) -> None:
        """What a permit took that was never used."""
        now = self._clock()
        self._left += tokens
        self._requests.take(-1.0, now)
        self._sent.add(-1, second, now)
        self._tokens.take(-tokens, now)
        self._used.add(-tokens, second, now)

    def _correct(self, tokens: int, second: int) -> None:
        now = self._clock()
        self._tokens.take(tokens, now)
        self._used.add(tokens, second, now)
        if tokens < 0:
            self._serve()

    def _released(self) -> None:
        self._in_flight -= 1
        self._serve()

    def _heard(self, rate: RateNews | None, *, limited: bool, widens: bool, volley: int) -> None:
        """Calls of one volley share one fate: only its first 429 counts, and old successes say nothing new."""
        now, fresh = self._clock(), volley == self._volley
        asked_s = _pause_s(rate.retry_after_s) if rate else 0.0
        if rate:
            self._hear_left(rate, now)
        if limited and fresh:
            self._volley += 1
            self._refused += 1
            self._window = max(1.0, min(self._window, 1e9 if self._concurrency else self._in_flight) / 2)
            bound_s = min(BACKOFF_CAP_S, BACKOFF_S * 2.0 ** min(self._refused, 20))
            asked_s = asked_s or self._rng.uniform(bound_s / 2, bound_s)
        elif widens and fresh:
            self._refused = 0
            self._window = min(self._most(), self._window + max(1.0 / self._window, WIDER))
        self._pause(asked_s, now)
        self._serve()

    def _hear_left(self, rate: RateNews, now: float) -> None:
        if rate.requests_left is not None and rate.requests_left < 1:
            self._pause(_pause_s(rate.requests_reset_s), now)
        if rate.tokens_left is not None and rate.tokens_reset_s is not None:
            self._left, self._left_until = rate.tokens_left, now + _pause_s(rate.tokens_reset_s)

    def _pause(self, seconds: float, now: float) -> None:
        if seconds > 0:
            self._paused_until = max(self._paused_until, now + seconds)

    def _most(self) -> float:
        return math.inf if self._concurrency is None else float(self._concurrency)


def _pause_s(told: float | None) -> float:
    """A time that a server named, within reason."""
    return min(told, PAUSE_CAP_S) if told is not None and told > 0 else 0.0


def _believed(tokens: int) -> int:
    return max(0, min(tokens, TOKENS_CAP))
