"""The time that is left to a call, and the time that does not count."""

from __future__ import annotations

import asyncio

import pytest

from pop.models.flights import Deadline, Flight, Wait, Waited
from pop.models.request import Message, ModelRequest, Origin


def flight(*askers: Waited) -> Flight:
    request = ModelRequest(model="m", messages=[Message(role="user", content="x")])
    return Flight(Origin(run_id="r", instance="i", generation=1, attempt=1), request, "k", "a", "s", list(askers))


def test_a_deadline_stands_still_until_it_goes_and_while_somebody_waits() -> None:
    """Only the time between `go` and `stop` is taken from it."""

    async def work() -> None:
        async with asyncio.timeout(None) as timeout:
            deadline = Deadline(timeout, 0.3)
            for _ in range(3):
                with Wait(flight(), deadline):
                    before_s = deadline.left_s
                    await asyncio.sleep(0.15)
                    assert deadline.left_s == before_s
            assert 0.1 < deadline.left_s <= 0.3
            assert timeout.when() is not None

    asyncio.run(work())


def test_a_deadline_that_goes_ends_what_is_tried() -> None:
    async def work() -> None:
        async with asyncio.timeout(None) as timeout:
            Deadline(timeout, 0.05).go()
            await asyncio.sleep(5)

    with pytest.raises(TimeoutError):
        asyncio.run(work())


def test_a_wait_that_is_broken_off_ends_for_all_who_asked() -> None:
    asker = Waited()
    one = flight(asker)

    async def work() -> None:
        with Wait(one):
            assert one.waiting
            assert asker.open == 1
            await asyncio.sleep(0.02)
            raise ValueError

    with pytest.raises(ValueError):
        asyncio.run(work())
    assert (one.waiting, asker.open) == (False, 0)
    assert asker.total_s >= 0.01
