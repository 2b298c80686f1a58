"""Lanes: who goes when, in a time that the test turns by itself (an event loop that jumps instead of sleeping)."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import selectors
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pop.models.limits import PAUSE_CAP_S, Lane, Permit
from pop.models.request import RateNews


class Jumping(selectors.DefaultSelector):
    """Never sleeps: the time that would be slept has passed at once."""

    now = 1000.0
    waits = 0

    def select(self, timeout: float | None = None) -> Any:
        if timeout:
            self.now += timeout
            self.waits += 1
        assert timeout is not None, "everybody waits for somebody else"
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


def play(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run it in jumping time."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work())


def now() -> float:
    return asyncio.get_running_loop().time()


def lane(concurrency: int | None = None, rpm: float | None = None, tpm: float | None = None) -> Lane:
    return Lane(
        "m", concurrency=concurrency, requests_per_minute=rpm, tokens_per_minute=tpm, clock=now, rng=random.Random(1)
    )


def most_within(sent: list[tuple[float, float]], span_s: float = 60.0) -> float:
    """The largest sum in any window of `span_s`."""
    most = total = 0.0
    first = 0
    for at, size in sent:
        total += size
        while sent[first][0] <= at - span_s + 1e-6:
            total -= sent[first][1]
            first += 1
        most = max(most, total)
    return most


@pytest.mark.parametrize("rpm", [3, 60, 1200])
def test_no_minute_holds_more_requests_than_the_limit_and_a_burst(rpm: float) -> None:
    """Whenever they come; and what may be sent is sent."""

    async def work() -> tuple[list[tuple[float, float]], float]:
        one, sent = lane(rpm=rpm), []
        began = now()
        number = int(rpm * 3)

        async def call() -> None:
            (await one.permit("r", 5)).release()
            sent.append((now(), 1.0))

        await asyncio.gather(*(call() for _ in range(number)))
        return sent, now() - began

    sent, took_s = play(work)
    burst = max(1, rpm / 10)
    assert most_within(sent) <= rpm + burst
    assert took_s == pytest.approx((len(sent) - burst) * 60 / rpm, rel=0.01)


def test_no_minute_holds_more_tokens_than_the_limit_and_the_largest_request() -> None:
    """Also with requests above the whole limit: they go alone, rather than never."""
    rng = random.Random(3)
    sizes = [rng.choice([1, 10, 100, 700, 2500]) for _ in range(300)]

    async def work() -> list[tuple[float, float]]:
        one, sent = lane(tpm=1000), []

        async def call(size: int) -> None:
            (await one.permit("r", size)).release()
            sent.append((now(), float(size)))

        await asyncio.gather(*(call(size) for size in sizes))
        return sent

    sent = play(work)
    assert len(sent) == len(sizes) and most_within(sent) <= 1000 + 2500
    after = [later - at for (at, size), (later, _) in itertools.pairwise(sent) if size == 2500]
    assert min(after) > 59


def test_what_was_not_used_is_given_back_and_what_was_used_more_is_owed() -> None:
    """The estimate is only reserved."""

    async def work() -> list[float]:
        one, times, began = lane(tpm=600), [], now()
        for size, real in ((60, 0), (60, 120), (60, 60), (60, None), (60, 60)):
            permit = await one.permit("r", size)
            times.append(now() - began)
            permit.settle(real)
            permit.settle(real)
            permit.release()
        return times

    assert play(work) == pytest.approx([0, 0, 12, 18, 24], abs=0.05)


def test_no_usage_a_server_claims_blocks_a_lane_for_longer_than_a_minute() -> None:
    """Nor crashes it."""

    async def work() -> float:
        one, began = lane(tpm=600), now()
        permit = await one.permit("r", 60)
        permit.settle(10**400)
        permit.release()
        (await one.permit("r", 60)).settle(-5)
        return now() - began

    assert play(work) == pytest.approx(66, abs=0.1)


def test_a_run_of_ten_thousand_does_not_starve_the_next() -> None:
    """Runs take turns, and within a run the first comes first."""

    async def work() -> list[str]:
        one, order = lane(concurrency=1), []

        async def call(name: str, number: int) -> None:
            permit = await one.permit(name, 1)
            order.append(f"{name}{number}")
            await asyncio.sleep(0.1)
            permit.release()

        crowd = [asyncio.create_task(call("a", number)) for number in range(10_000)]
        await asyncio.sleep(1.0)
        await asyncio.gather(*(call(name, number) for name in "bc" for number in range(3)))
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        assert one.figures()["waiting"] == 0
        return order

    order = play(work)
    late = order[order.index("b0") - 1 :]
    assert [name[0] for name in late[:9]] == list("abcabcabc")
    first = [name for name in order if name[0] == "a"]
    assert first == [f"a{number}" for number in range(len(first))]


def test_ten_thousand_waiters_are_cheap_and_nothing_runs_while_they_wait() -> None:
    """To wait, to leave and to be served costs microseconds each."""

    async def work() -> tuple[int, int, float]:
        one, served = lane(concurrency=1), 0
        held = await one.permit("r0", 1)
        began = time.perf_counter()

        async def call(name: str) -> None:
            nonlocal served
            permit = await one.permit(name, 1)
            served += 1
            permit.release()

        tasks = [asyncio.create_task(call(f"r{number % 100}")) for number in range(10_000)]
        await asyncio.sleep(1)
        loop: Any = asyncio.get_running_loop()
        before = loop.jumping.waits
        await asyncio.sleep(3600)
        woken = loop.jumping.waits - before
        for task in reversed(tasks[::2]):
            task.cancel()
        await asyncio.sleep(1)
        assert one.figures()["waiting"] == 5_000
        held.release()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert one.figures()["in_flight"] == one.figures()["waiting"] == 0
        return served, woken, time.perf_counter() - began

    served, woken, took_s = play(work)
    assert (served, woken) == (5_000, 1) and took_s < 5


def test_a_volley_of_429s_halves_the_window_once_and_success_widens_it_again() -> None:
    """And the pause is what the server asked for, within reason."""

    async def work() -> None:
        one = lane(concurrency=16)
        volley = [await one.permit("r", 1) for _ in range(16)]
        for permit in volley:
            permit.heard(RateNews(retry_after_s=7.0), limited=True)
            permit.release()
        assert one.figures()["window"] == 8 and one.figures()["paused_s"] == 7.0
        began = now()
        again = await one.permit("r", 1)
        assert now() - began == pytest.approx(7, abs=0.01)
        again.heard(RateNews(retry_after_s=1e9), limited=True)
        assert one.figures()["window"] == 4 and one.figures()["paused_s"] == PAUSE_CAP_S
        again.release()
        for round_of_calls in range(200):
            permit = await one.permit(f"r{round_of_calls}", 1)
            permit.heard(None, limited=False)
            permit.release()
            permit.release()
        assert one.figures()["window"] == 16 and one.figures()["in_flight"] == 0

    play(work)


def test_429s_that_name_no_time_pause_for_longer_and_longer() -> None:
    """Without end they cost one request per half minute, with a window of one."""

    async def work() -> list[float]:
        one, pauses = lane(), []
        for _ in range(12):
            permit = await one.permit("r", 1)
            permit.heard(None, limited=True)
            permit.release()
            pauses.append(one.figures()["paused_s"])
        assert one.figures()["window"] == 1
        return pauses

    pauses = play(work)
    assert 0.5 <= pauses[0] <= 1 and all(15 <= pause <= 30 for pause in pauses[6:])


def test_headers_that_say_nothing_is_left_are_waited_out() -> None:
    """Requests: everybody waits. Tokens: whoever needs more than is left."""

    async def work() -> list[float]:
        one, began, times = lane(), now(), []
        permit = await one.permit("r", 1)
        permit.heard(RateNews(requests_left=0, requests_reset_s=5.0), limited=False)
        other = await one.permit("r", 1)
        times.append(now() - began)
        other.heard(RateNews(tokens_left=100, tokens_reset_s=20.0), limited=False)
        for size in (60, 40, 1):
            await one.permit("r", size)
            times.append(now() - began)
        return times

    assert play(work) == pytest.approx([5, 5, 5, 25], abs=0.01)


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_strange_headers_change_nothing_for_long(strange: float) -> None:
    """A server may say what it likes."""
    fields = ("requests_left", "requests_reset_s", "tokens_left", "tokens_reset_s", "retry_after_s")

    async def work() -> float:
        one, began = lane(concurrency=4, rpm=6000, tpm=6000), now()
        for limited in (True, False):
            permit = await one.permit("r", 10)
            permit.heard(RateNews(**dict.fromkeys(fields, strange)), limited=limited)
            permit.release()
        (await one.permit("r", 10)).release()
        return now() - began

    assert play(work) <= 2 * PAUSE_CAP_S + 1


def test_changed_limits_hold_at_once_and_nobody_loses_its_place() -> None:
    """pop.toml may be edited while a thousand wait."""

    async def work() -> list[int]:
        one, order = lane(concurrency=1), []

        async def call(number: int) -> None:
            await one.permit("r", 1)
            order.append(number)

        tasks = [asyncio.create_task(call(number)) for number in range(20)]
        await asyncio.sleep(1)
        assert order == [0]
        one.configure(concurrency=5, requests_per_minute=None, tokens_per_minute=None)
        await asyncio.sleep(1)
        assert order == [0, 1, 2, 3, 4]
        one.configure(concurrency=None, requests_per_minute=60, tokens_per_minute=None)
        await asyncio.gather(*tasks)
        assert one.figures()["limits"]["requests_per_minute"] == 60
        return order

    assert play(work) == list(range(20))


def test_the_figures_are_those_of_the_last_minute() -> None:
    """With what was really used, counted when it was sent."""

    async def work() -> None:
        one = lane(concurrency=9)
        for _ in range(3):
            permit = await one.permit("r", 100)
            await asyncio.sleep(20)
            permit.settle(10)
        assert (one.figures()["requests_per_minute"], one.figures()["tokens_per_minute"]) == (2, 20)
        permit.settle(30)
        assert one.figures()["tokens_per_minute"] == 40 and one.figures()["in_flight"] == 3
        await asyncio.sleep(61)
        permit.settle(10**9)
        assert (one.figures()["requests_per_minute"], one.figures()["tokens_per_minute"]) == (0, 0)

    play(work)


def test_a_permit_given_to_somebody_who_left_in_that_moment_goes_to_the_next() -> None:
    """And what it reserved is given back."""

    async def work() -> None:
        one = lane(concurrency=1, rpm=60, tpm=600)
        held = await one.permit("r", 10)
        first, second = (asyncio.create_task(one.permit("r", 10)) for _ in range(2))
        await asyncio.sleep(0)
        held.release()
        first.cancel()
        (await second).release()
        assert first.cancelled() and one.figures()["requests_per_minute"] == 2
        assert one.figures()["tokens_per_minute"] == 20 and one.figures()["in_flight"] == 0

    play(work)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["permit", "permit", "permit", "cancel", "settle", "release", "release", "429", "well", "time", "race"]
        ),
        st.integers(0, 50),
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from([None, 1, 3]), st.sampled_from([None, 30.0, 600.0]), st.sampled_from([None, 100.0]))
def test_whatever_happens_nobody_is_lost(
    steps: list[tuple[str, int]], concurrency: int | None, rpm: float | None, tpm: float | None
) -> None:
    """The window holds, counts are true, runs take turns, and whoever waits is served or has left."""

    async def work() -> None:
        one = lane(concurrency, rpm, tpm)
        held: list[Permit] = []
        tasks: list[asyncio.Task[None]] = []
        waiting: dict[str, list[int]] = {}
        since: dict[str, dict[str, int]] = {}  # how often others were served since a waiting run was

        async def call(name: str, number: int) -> None:
            waiting.setdefault(name, []).append(number)
            since.setdefault(name, {})
            try:
                permit = await one.permit(name, 20)
            except asyncio.CancelledError:
                waiting[name].remove(number)
                raise
            figures = one.figures()
            assert figures["window"] is None or figures["in_flight"] <= max(figures["window"], 1)
            assert number == waiting[name].pop(0)
            served(name)
            held.append(permit)

        def served(name: str) -> None:
            for other, counts in since.items():
                if waiting.get(other) and other != name:
                    counts[name] = counts.get(name, 0) + 1
                    assert counts[name] <= 1
                else:
                    counts.clear()

        for number, (what, size) in enumerate(steps):
            if what == "permit":
                tasks.append(asyncio.create_task(call("abc"[size % 3], number)))
            elif what == "cancel" and tasks:
                tasks[size % len(tasks)].cancel()
            elif what == "time":
                await asyncio.sleep(size)
            elif held and what == "race":  # a permit comes to somebody who leaves in that moment
                held.pop(size % len(held)).release()
                next((task for task in tasks if not task.done()), tasks[0]).cancel()
            elif held and what == "settle":
                held[size % len(held)].settle(size)
            elif held and what == "release":
                held.pop(size % len(held)).release()
            elif held:
                held[size % len(held)].heard(None, limited=what == "429")
            for _ in range(4):
                await asyncio.sleep(0)
            figures = one.figures()
            assert figures["in_flight"] == len(held) and figures["waiting"] == sum(map(len, waiting.values()))
        while not all(task.done() for task in tasks):
            while held:
                held.pop().release()
            await asyncio.sleep(1)
        for permit in held:
            permit.release()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        assert one.figures()["in_flight"] == one.figures()["waiting"] == 0

    play(work)
